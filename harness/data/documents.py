"""Reads a corpus as a list of documents and says which of them are held out for testing.

The split is by document, because what is held out must be new to the models as a whole, and perplexity against
context is a question about whole documents.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from harness.data import audio, sources
from harness.data.config import DataConfig

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

READERS = {
    "sotu": sources.sotu, "stdlib": sources.stdlib, "folder": sources.folder, "jsonl": sources.jsonl,
    "audio": audio.recordings, "speech": audio.speech,
}  # fmt: skip
"""What reads each `data.source`."""

SMALLEST = 2
"""Bytes of the shortest document that has anything to predict: one byte given the byte before it."""


@dataclass(frozen=True)
class Document:
    """One text with a name that is unique in its corpus and the same on every machine."""

    name: str
    text: bytes


def load_documents(config: DataConfig) -> list[Document]:
    """All documents of at least `min_bytes` (and two) bytes, sorted by name.

    ValueError, in one line, if there is nothing to read, something cannot be read, or all of it is too short.
    """
    try:
        found = [Document(name, text) for name, text in READERS[config.source](config)]
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"data.source={config.source}: cannot read {error.filename or config.path}: {reason}"
        ) from None
    least = max(config.min_bytes, SMALLEST)
    documents = sorted((d for d in found if len(d.text) >= least), key=lambda d: d.name)
    if not documents:
        longest = max((len(d.text) for d in found), default=0)
        raise ValueError(
            f"no document of at least {least} bytes in {config.path or config.source}: {len(found)} found,"
            f" the longest of {longest} bytes (data.min_bytes={config.min_bytes})"
        )
    return documents


def split_of(document: Document, config: DataConfig) -> Split:
    """The split of one document, by a hash of `split_seed` and its text alone: the same on every machine.

    The text is hashed, not the name, and with its white space evened out. So copies of a text under several
    names, or with other line ends, always share a split, and no test document can have a copy in training.
    """
    text = b" ".join(document.text.split())
    digest = hashlib.sha256(f"{config.split_seed}:".encode() + text).digest()
    return "test" if int.from_bytes(digest[:8], "big") < config.test_fraction * 2**64 else "train"


def split_documents(documents: list[Document], config: DataConfig) -> list[Split]:
    """The split of each document; ValueError, in one line, if training or test would be left with none."""
    splits = [split_of(document, config) for document in documents]
    for split in SPLITS:
        if split not in splits:
            raise ValueError(
                f"data.test_fraction={config.test_fraction} leaves no {split} document of {len(documents)}:"
                f" give more documents, or another data.test_fraction or data.split_seed (now {config.split_seed})"
            )
    return splits
