"""JSON lines, plain or compressed by gzip or Zstandard (as the Pile ships): one object a line, its text in one field.

A part is a file. Its lines are cut here and parsed where they are tokenised, so one reader feeds many processes.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from harness.data.config import DataConfig
from harness.data.sources import Item, Part, Split, stamp

BUFFER = 1 << 20


def jsonl(config: DataConfig) -> list[Part]:
    """The files `path`, a pattern or a single one, in the order of their names, and those of `test_path`."""
    if config.test_path is None:
        return _parts("path", config.path, None)
    return _parts("path", config.path, "train") + _parts("test_path", config.test_path, "test")


def _parts(key: str, given: str | None, split: Split | None) -> list[Part]:
    pattern = str(Path(str(given)).expanduser())
    single = Path(pattern).is_file()
    paths = [Path(pattern)] if single else [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise ValueError(f"data.{key} is {given!r}: there is no file {Path(pattern).absolute()}")
    root = paths[0].parent if single else _fixed(pattern)
    names = [path.relative_to(root).as_posix() for path in paths]
    return [
        Part(partial(lines, path, name), path.stat().st_size, stamp(name, path), split)
        for name, path in zip(names, paths, strict=True)
    ]


def _fixed(pattern: str) -> Path:
    """The folder before the first part of a pattern that has a wild card."""
    parts = Path(pattern).parts
    return Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])


def lines(path: Path, name: str) -> Iterator[Item]:
    """The lines of a file, named `file:line`; blank ones are passed over. ValueError if the compression is damaged."""
    with path.open("rb", buffering=BUFFER) as raw:
        try:
            for number, line in enumerate(_decompressed(raw, path.suffix), start=1):
                if not line.isspace():
                    yield Item(f"{name}:{number}", line, raw.tell())
        except (EOFError, zlib.error, OSError) as error:
            raise ValueError(f"data.path: {path} is damaged, or not what its name says ({error})") from None


def _decompressed(raw: BinaryIO, suffix: str) -> Iterator[bytes]:
    if suffix == ".gz":
        return iter(gzip.GzipFile(fileobj=raw))
    if suffix == ".zst":
        import pyarrow

        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
        return iter(io.BufferedReader(stream, BUFFER))
    return iter(raw)


def text_of(line: bytes, field: str, name: str) -> bytes:
    """The text in `field` of one line of JSON, in UTF-8; `name` says which line it is."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{name} is a JSON {type(row).__name__}: each line must be an object with key {field!r}")
    return encoded(row.get(field), row, field, name)


def encoded(value: object, row: dict[str, object], field: str, name: str) -> bytes:
    """The `value` of `field` in UTF-8; ValueError where it is no text."""
    if not isinstance(value, str):
        held = f"holds a {type(row[field]).__name__}" if field in row else "is missing"
        texts = ", ".join(sorted(key for key, other in row.items() if isinstance(other, str))) or "none"
        raise ValueError(f"{name}: data.field={field} {held}; the line's text fields are: {texts}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: data.field={field} is not valid Unicode: {error.reason}") from None
