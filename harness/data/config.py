"""Which text the models are trained and tested on (config group `data`). Imports nothing heavy: `--help` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

SOURCES = ("sotu", "stdlib", "folder", "jsonl", "hf", "audio", "speech")
_WITH_PATH = {
    "folder": "the folder of the documents",
    "jsonl": "a .jsonl, .jsonl.gz or .jsonl.zst file, or a pattern of such, as in pile/*.jsonl.zst",
    "hf": "a name on the Hugging Face hub, or a folder or files of Parquet, JSON lines or Arrow",
    "audio": "the folder of the documents",
}
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
ENCODINGS = ("mulaw", "pcm16")
BYTES = "bytes"


@dataclass
class DataConfig:
    """Where the documents come from, what their tokens are, and which of them are held out for testing.

    `source`: `sotu` (presidential messages, from the package of that name), `stdlib` (sources of the running
    Python's standard library), `folder` (files under `path` that match `pattern`), `jsonl` (one JSON object a
    line of the files `path`, its text in `field`) or `hf` (the `split` of a data set that Hugging Face's `datasets` can
    read: the subset `name` of the hub's `path`, or local files; its text in `field`); `audio` (sound files under
    `path`) or `speech` (the presidential messages, spoken by a synthesiser), both as bytes in the `encoding` mulaw (a
    byte a sample) or pcm16 (two), with each `decimate` samples averaged into one.

    `tokenizer`: `bytes`, or any tokenizer of transformers: a name on the hub, a folder or a tokenizer.json. `pack`:
    training windows run on over the ends of documents, each closed by the tokenizer's end-of-text token (byte 0 for
    bytes); without it windows lie within documents, and what is shorter than a window is left out of training.

    Held out is the split `test_split` of the data set (`hf`), or what lies at `test_path` (`folder`, `jsonl`); without
    them the share `test_fraction` of the documents, chosen by a hash of the text and `split_seed`. `min_bytes`: shorter
    documents are left out of both splits. `processes`: how many tokenise a large corpus (None: one a core).
    """

    source: str
    path: str | None = None
    pattern: str = "**/*.txt"
    field: str = "text"
    name: str | None = None
    split: str = "train"
    test_split: str | None = None
    test_path: str | None = None
    test_fraction: float = 0.1
    min_bytes: int = 0
    split_seed: int = 0
    tokenizer: str = BYTES
    pack: bool = False
    encoding: str = "mulaw"
    decimate: int = 1
    processes: int | None = None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"data.source is {self.source!r}: must be one of {', '.join(SOURCES)}")
        self._check_places()
        if not self.pattern or PurePath(self.pattern).is_absolute():
            raise ValueError(f"data.pattern is {self.pattern!r}: must be relative to data.path, as in **/*.txt")
        for key in ("field", "split", "tokenizer"):
            if not getattr(self, key):
                raise ValueError(f"data.{key} is empty: must be a name, as in {getattr(DataConfig, key)}")
        if self.tokenizer != BYTES and self.source in ("audio", "speech"):
            raise ValueError(f"data.tokenizer is {self.tokenizer!r}: must be bytes with data.source={self.source}")
        if self.encoding not in ENCODINGS:
            raise ValueError(f"data.encoding is {self.encoding!r}: must be one of {', '.join(ENCODINGS)}")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"data.test_fraction is {self.test_fraction}: must lie between 0 and 1")
        for key, least in {"decimate": 1, "min_bytes": 0, "processes": 1}.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"data.{key} is {value}: must be at least {least}")

    def _check_places(self) -> None:
        """What says where the documents lie must be there for the sources that need it, and for no other."""
        if self.source in _WITH_PATH and not self.path:
            what = _WITH_PATH[self.source]
            raise ValueError(f"data.path is missing: data.source={self.source} needs {what}, as in data.path=PATH")
        sources = {
            "path": tuple(_WITH_PATH), "name": ("hf",), "test_split": ("hf",), "test_path": ("folder", "jsonl")
        }  # fmt: skip
        for key, known in sources.items():
            value = getattr(self, key)
            if value is not None and self.source not in known:
                choices = " or ".join(known)
                raise ValueError(f"data.{key} is {value!r}: must be null with data.source={self.source}; use {choices}")
        if self.test_split == self.split or (self.test_path is not None and self.test_path == self.path):
            key = "test_split" if self.test_split else "test_path"
            raise ValueError(f"data.{key} is what is trained on: must be another than data.{key.removeprefix('test_')}")
        for key in ("path", "test_path"):
            value = getattr(self, key)
            if self.source == "jsonl" and value is not None and not value.endswith(JSON_LINES):
                endings = " or ".join((", ".join(JSON_LINES[:-1]), JSON_LINES[-1]))
                raise ValueError(f"data.{key} is {value!r}: must end in {endings} with data.source=jsonl")
