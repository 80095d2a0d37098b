"""Which text the models are trained and tested on (config group `data`). Imports nothing heavy: `--help` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

SOURCES = ("sotu", "stdlib", "folder", "jsonl")
_WITH_PATH = ("folder", "jsonl")


@dataclass
class DataConfig:
    """Where the documents come from and which of them are held out for testing.

    `source`: `sotu` (presidential messages, from the package of that name), `stdlib` (sources of the running
    Python's standard library), `folder` (files under `path` that match `pattern`) or `jsonl` (one JSON object a
    line of the file `path`, its text in `field`). `test_fraction`: the share of documents held out, chosen by a
    hash of the text and `split_seed`. `min_bytes`: shorter documents are left out of both splits.
    """

    source: str
    path: str | None = None
    pattern: str = "**/*.txt"
    field: str = "text"
    test_fraction: float = 0.1
    min_bytes: int = 0
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"data.source is {self.source!r}: must be one of {', '.join(SOURCES)}")
        if self.source in _WITH_PATH and not self.path:
            what = "the folder of the documents" if self.source == "folder" else "the .jsonl or .jsonl.gz file"
            raise ValueError(f"data.path is missing: data.source={self.source} needs {what}, as in data.path=PATH")
        if self.source not in _WITH_PATH and self.path is not None:
            choices = " or ".join(_WITH_PATH)
            raise ValueError(f"data.path is {self.path!r}: must be null with data.source={self.source}; use {choices}")
        if self.source == "jsonl" and not str(self.path).endswith((".jsonl", ".jsonl.gz")):
            raise ValueError(f"data.path is {self.path!r}: must end in .jsonl or .jsonl.gz with data.source=jsonl")
        if not self.pattern or PurePath(self.pattern).is_absolute():
            raise ValueError(f"data.pattern is {self.pattern!r}: must be relative to data.path, as in **/*.txt")
        if not self.field:
            raise ValueError("data.field is empty: must name the key that holds the text in each line, as in text")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"data.test_fraction is {self.test_fraction}: must lie between 0 and 1")
        if self.min_bytes < 0:
            raise ValueError(f"data.min_bytes is {self.min_bytes}: must be at least 0")
