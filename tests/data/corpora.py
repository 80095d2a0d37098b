"""Small corpora on disk, and what a source reads of one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow

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
