"""Tokenizers: bytes, which need none, or any fast tokenizer of transformers, by hub name, folder or tokenizer.json.

A saved model is whole only with a tokenizer beside it, since `generate` and lm-eval need one. So bytes have one too;
training does not use it: there the bytes of the file are the token ids already, and the two agree by construction.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.data.config import BYTES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
"""What a tokenizer.json, which does not say, may call the end of a text."""


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that `data.tokenizer` names; ValueError, in one line, if it cannot be had or is a slow one."""
    if name == BYTES:
        return byte_tokenizer()
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(name).expanduser()
    try:
        if path.suffix == ".json":
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
            known = tokenizer.get_vocab()
            tokenizer.eos_token = next((end for end in ENDS if end in known), None)
            return tokenizer
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path) if path.exists() else name)
    except Exception as error:  # tokenizers raises Exception itself for a file that is none of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"data.tokenizer={name}: {reason}") from None
    if not found.is_fast:
        raise ValueError(f"data.tokenizer={name}: it has no fast form, which alone says what bytes a token stands for")
    return found


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
