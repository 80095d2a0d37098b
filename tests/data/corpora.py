"""Small corpora and tokenizers on disk, and what a source reads of a corpus."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from harness.data.config import DataConfig
from harness.data.documents import Document, parts_of, text_of


def read(config: DataConfig) -> list[Document]:
    """All documents, in order."""
    items = (item for part in parts_of(config) for item in part.items())
    return [Document(item.name, text_of(item.raw, item.name, config)) for item in items]


def folder_of(root: Path, texts: dict[str, bytes]) -> str:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text)
    return str(root)


def lines_of(path: Path, *rows: Any) -> str:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compressed(text, path.suffix))
    return str(path)


def compressed(text: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(text)
    return pyarrow.compress(text, codec="zstd", asbytes=True) if suffix == ".zst" else text


TEXT = "the cat sat on the mat, the hat on the cat; naïve café – 日本の猫 🎉 and the end of the tale\n"


def bpe(vocab_size: int = 300) -> Tokenizer:
    """A byte-level BPE as GPT-2's, with an end-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT * 9], trainer)
    return tokenizer


def llama_like() -> Tokenizer:
    """As Llama-2's: a mark before the text and for each space, and bytes for characters it does not know."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(marks)  # type: ignore[assignment]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat, the hat on the cat " * 9], trainer)
    return tokenizer
