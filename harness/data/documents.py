"""Which parts a corpus has, which of its documents count, and which of them are held out for testing.

The split is by document, because what is held out must be new to the models as a whole, and perplexity against
context is a question about whole documents.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from harness.data import audio, hub, jsonl, sources
from harness.data.config import DataConfig
from harness.data.sources import Part, Split

READERS = {
    "sotu": sources.sotu, "stdlib": sources.stdlib, "folder": sources.folder, "jsonl": jsonl.jsonl, "hf": hub.hf,
    "audio": audio.recordings, "speech": audio.speech,
}  # fmt: skip
"""What reads each `data.source`."""

SMALLEST = 2
"""Tokens (and bytes) of the shortest document that has anything to predict: one given the one before it."""


@dataclass(frozen=True)
class Document:
    """One text with a name that is unique in its split and the same on every machine."""

    name: str
    text: bytes


def parts_of(config: DataConfig) -> list[Part]:
    """The parts of the corpus, in order; ValueError, in one line, if there is nothing to read."""
    try:
        return READERS[config.source](config)
    except OSError as error:
        raise unreadable(config, error) from None


def unreadable(config: DataConfig, error: OSError) -> ValueError:
    """One line about what could not be read."""
    reason = error.strerror or str(error)
    return ValueError(f"data.source={config.source}: cannot read {error.filename or config.path}: {reason}")


def text_of(raw: bytes, name: str, config: DataConfig) -> bytes:
    """The text of an item of a part."""
    return jsonl.text_of(raw, config.field, name) if config.source == "jsonl" else raw


def split_of(document: Document, config: DataConfig) -> Split:
    """The split of one document, by a hash of `split_seed` and its text alone: the same on every machine.

    The text is hashed, not the name, and with its white space evened out. So copies of a text under several
    names, or with other line ends, always share a split, and no test document can have a copy in training.
    """
    text = b" ".join(document.text.split())
    digest = hashlib.sha256(f"{config.split_seed}:".encode() + text).digest()
    return "test" if int.from_bytes(digest[:8], "big") < config.test_fraction * 2**64 else "train"
