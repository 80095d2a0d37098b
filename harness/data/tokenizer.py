"""The byte tokenizer as a transformers tokenizer, so that a saved model is whole: `generate` and lm-eval need one.

Training does not use it: there the bytes of the file are the token ids already. The two agree by construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are the bytes of the text in UTF-8; without special tokens.

    It is a byte-level BPE without merges: the pre-tokenizer writes each byte as one printable character, and the
    vocabulary maps that character to the byte's value.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {character: byte for byte, character in enumerate(_printable_bytes())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _printable_bytes() -> list[str]:
    """The character that stands for each byte in byte-level BPE (the table of GPT-2, Radford et al. 2019).

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for the characters from 256 on.
    """
    itself = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in itself]
    return [chr(byte) if byte in itself else chr(256 + others.index(byte)) for byte in range(256)]
