"""Byte-level tokens of a corpus on disk: written once, memory-mapped by every process that trains or scores.

Bytes are the tokens because they need no training, no download and no choice, and because perplexity per token is
then perplexity per byte, comparable over corpora. A store is a folder `tokens/<hash>/` with `ids.bin` (all
documents, one after the other, one byte a token) and `index.json` (names, borders, splits). The hash covers names,
contents and splits: the same hash means the same tokens, in the same order, held out in the same way.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.config import DataConfig
from harness.data.documents import SPLITS, Document, Split, load_documents, split_documents

VOCAB_SIZE = 256
"""Token ids are byte values."""


@dataclass(frozen=True)
class TokenDocument:
    """One document as token ids [n], uint8: a read-only view into the store's memory map."""

    name: str
    ids: NDArray[np.uint8]


class TokenStore:
    """The documents of one corpus as tokens, by split; open one with `build` or `open`."""

    vocab_size = VOCAB_SIZE

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self.hash: str = index["hash"]
        self._index = index
        self._ids: NDArray[np.uint8] = np.asarray(np.memmap(folder / "ids.bin", dtype=np.uint8, mode="r"))

    @classmethod
    def build(cls, config: DataConfig, root: Path) -> TokenStore:
        """The store of the corpus that `config` describes, in `root/tokens/<hash>/`; written if it is not there.

        The corpus is read and hashed each time, so a changed file is never missed.
        """
        documents = load_documents(config)
        splits = split_documents(documents, config)
        digest = content_hash(documents, splits)
        folder = Path(root) / "tokens" / digest[:16]
        if not _is_whole(folder):
            _write(folder, documents, splits, digest)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """The store in `folder`, as an earlier `build` left it."""
        if not _is_whole(Path(folder)):
            raise ValueError(f"{folder} is not a whole token store (index.json and ids.bin of its size)")
        return cls(Path(folder), _read_index(Path(folder)))

    def documents(self, split: Split) -> list[TokenDocument]:
        """The documents of one split, by name."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}: must be one of {', '.join(SPLITS)}")
        names, borders = self._index["names"], self._index["borders"]
        chosen = (i for i, s in enumerate(self._index["splits"]) if s == split)
        return [TokenDocument(names[i], self._ids[borders[i] : borders[i + 1]]) for i in chosen]


def content_hash(documents: list[Document], splits: list[Split]) -> str:
    """SHA-256 over each document's name, text and split, each preceded by its length, in hexadecimal."""
    whole = hashlib.sha256(b"bytes as tokens")
    for document, split in zip(documents, splits, strict=True):
        for part in (document.name.encode("utf-8", "surrogateescape"), document.text, split.encode()):
            whole.update(len(part).to_bytes(8, "big"))
            whole.update(part)
    return whole.hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return index


def _is_whole(folder: Path) -> bool:
    try:
        return bool(_read_index(folder)["borders"][-1] == (folder / "ids.bin").stat().st_size)
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False


def _write(folder: Path, documents: list[Document], splits: list[Split], digest: str) -> None:
    """Write a store under a temporary name, flush it and rename it; two processes may do so at the same time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    borders = np.cumsum([0] + [len(d.text) for d in documents]).tolist()
    index = {"hash": digest, "names": [d.name for d in documents], "borders": borders, "splits": splits}
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch, "store")
        fresh.mkdir()
        _write_file(fresh / "ids.bin", b"".join(d.text for d in documents))
        _write_file(fresh / "index.json", json.dumps(index).encode())
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)
        try:
            fresh.rename(folder)
        except OSError:
            if not _is_whole(folder):  # else another process was first, and its store has the same content
                raise


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
