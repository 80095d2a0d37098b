"""From a config to the folder of its tokens: found if it is there, else made, and by one process at a time.

A corpus of one block is read and hashed each time, so a changed file is never missed. A larger one is known by the
names, sizes and times of its files (on the hub: by its name), and while those stay it is not read again. What a key
of either kind stands for lies beside the stores, `.known-<key>`; an unfinished store in `.building-<key>`.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data.building import Advance, Block, blocks, in_processes, shard_of, written
from harness.data.config import BYTES, DataConfig
from harness.data.documents import SMALLEST, parts_of, unreadable
from harness.data.hub import is_remote
from harness.data.shard import Contents, write_file
from harness.data.sources import SPLITS, Part
from harness.data.tokenizer import load_tokenizer
from harness.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 2
"""Of the form of a store."""
COUNTS = ("documents", "tokens", "bytes")
"""What the index of a store counts, by split and shard."""


def obtain(config: DataConfig, root: Path, advance: Advance) -> Path:
    """The folder of the tokens that `config` describes, in `root/tokens`; ValueError, in one line, without any."""
    tokens = root / "tokens"
    tokens.mkdir(parents=True, exist_ok=True)
    tokenizer = None if config.tokenizer == BYTES else load_tokenizer(config.tokenizer)
    vocabulary = Vocabulary() if tokenizer is None else Vocabulary.of(tokenizer)
    if config.pack and vocabulary.end is None:
        raise ValueError(f"data.pack: the tokenizer {config.tokenizer} names no end-of-text token; leave it false")
    parts = [] if is_remote(config) else parts_of(config)
    key = _key(config, vocabulary, [part.stamp for part in parts])
    with _locked(tokens / f".lock-{key}"):
        folder = _known(tokens, key)
        if folder is None:
            building = tokens / f".building-{key}"
            key, contents = _tokenised(building, key, parts or parts_of(config), vocabulary, config, advance)
            folder = _known(tokens, key) or _finished(building, contents, tokenizer, vocabulary, config)
            if building.exists():
                shutil.rmtree(building)
            write_file(tokens / f".known-{key}", [folder.name.encode()])
        return folder


def known(config: DataConfig, root: Path) -> Path | None:
    """The folder of the tokens of a corpus that is known by its files or its name on the hub, if they are there."""
    parts = [] if is_remote(config) else parts_of(config)
    return _known(root / "tokens", _key(config, Vocabulary.named(config.tokenizer), [part.stamp for part in parts]))


def _tokenised(
    building: Path, key: str, parts: Sequence[Part], vocabulary: Vocabulary, config: DataConfig, advance: Advance
) -> tuple[str, list[Contents]]:
    """What the shards of the corpus hold, and its key; if it is one block whose key is known, nothing is written."""
    have = written(building)
    if len(have) < 2:  # perhaps all of a small corpus, which is always read again
        have = {}
    try:
        stream = blocks(parts, have)
        first = list(itertools.islice(stream, 2))
        if len(first) == 1 and not have:
            key = _key(config, vocabulary, _hashes(first[0]))
            if _known(building.parent, key):
                return key, []
            building.mkdir(exist_ok=True)
            return key, [shard_of(building, first[0], vocabulary, config)]
        building.mkdir(exist_ok=True)
        size = sum(part.size for part in parts)
        have |= in_processes(_after(first, stream), size, building, vocabulary, config, advance)
    except OSError as error:
        raise unreadable(config, error) from None
    return key, [have[number] for number in sorted(have)]


def _after(first: list[Block], others: Iterator[Block]) -> Iterator[Block]:
    """The `first` blocks and the others, none of which is held here when it has been given."""
    while first:
        yield first.pop(0)
    yield from others


def _key(config: DataConfig, vocabulary: Vocabulary, marks: Iterable[str]) -> str:
    """What a corpus is known by: the config, the tokenizer, and `marks` of what is read."""
    options = asdict(config) | {"processes": None}
    whole = hashlib.sha256(json.dumps([VERSION, options, vocabulary.size, vocabulary.end]).encode())
    for mark in [vocabulary.definition or BYTES, *marks]:
        whole.update(hashlib.sha256(mark.encode("utf-8", "surrogateescape")).digest())
    return whole.hexdigest()[:16]


def _hashes(block: Block) -> Iterator[str]:
    """A mark of each document of a block."""
    for name, raw in block.items:
        yield f"{name} {hashlib.sha256(raw).hexdigest()}"


def _known(tokens: Path, key: str) -> Path | None:
    """The whole store that a key stands for, if there is one."""
    pointer = tokens / f".known-{key}"
    folder = tokens / pointer.read_text() if pointer.exists() else None
    return folder if folder is not None and is_whole(folder) else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock of one that was killed is free."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _finished(
    building: Path,
    contents: Sequence[Contents],
    tokenizer: PreTrainedTokenizerBase | None,
    vocabulary: Vocabulary,
    config: DataConfig,
) -> Path:
    """The store made of the shards in `building`, under its hash; ValueError if a split has no document."""
    _check(contents, config)
    hashes = [shard.hash for shard in contents]
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256(bytes.fromhex("".join(hashes))).hexdigest()
    if tokenizer is not None:
        tokenizer.save_pretrained(building / "tokenizer")
    index = {
        "version": VERSION, "hash": whole, "vocab_size": vocabulary.size, "tokenizer": config.tokenizer,
        "pack": config.pack, "sizes": [shard.size for shard in contents],
        **{key: {home: [getattr(shard, key)[home] for shard in contents] for home in SPLITS} for key in COUNTS},
    }  # fmt: skip
    for torn in building.glob(".*"):  # what a killed process was writing
        torn.unlink()
    write_file(building / "index.json", [json.dumps(index).encode()])
    folder = building.parent / whole[:16]
    if not is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    return folder


def _check(contents: Sequence[Contents], config: DataConfig) -> None:
    """ValueError if there is no document, or none of a split."""
    counts = {home: sum(shard.documents[home] for shard in contents) for home in SPLITS}
    total, found = sum(counts.values()), sum(shard.found for shard in contents)
    if not total:
        raise ValueError(
            f"no document of at least {max(config.min_bytes, SMALLEST)} bytes in {config.path or config.source}:"
            f" {found} found, the longest of {max(shard.longest for shard in contents)} bytes"
            f" (data.min_bytes={config.min_bytes})"
        )
    for home in SPLITS:
        if not counts[home] and (config.test_split or config.test_path):
            key = "data.test_split or data.test_path" if home == "test" else "data.split or data.path"
            raise ValueError(f"{key}: no {home} document of at least {max(config.min_bytes, SMALLEST)} bytes there")
        if not counts[home]:
            raise ValueError(
                f"data.test_fraction={config.test_fraction} leaves no {home} document of {total}:"
                f" give more documents, or another data.test_fraction or data.split_seed (now {config.split_seed})"
            )


def is_whole(folder: Path) -> bool:
    """Whether a store is there with all its shards."""
    try:
        index = json.loads((folder / "index.json").read_text())
        sizes = [(folder / f"{i:05d}.bin").stat().st_size for i in range(len(index["sizes"]))]
        return bool(index["version"] == VERSION and index["sizes"] == sizes)
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError):
        return False
