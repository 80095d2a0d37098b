"""A corpus of many shards has the same bytes whoever tokenises it, however often that is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data import building, corpus
from harness.data.building import Block
from harness.data.config import DataConfig
from harness.data.shard import Contents
from harness.data.sources import Item, Part
from harness.data.tokens import TokenStore
from tests.data.corpora import lines_of, read

BLOCK = 20_000
DIES = """
import os, signal, sys, time
from pathlib import Path
from harness.data import building, corpus
from harness.data.config import DataConfig
from harness.data.tokens import TokenStore

path, root, building.BLOCK_BYTES = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
blocks = corpus.blocks

def deadly(parts, have):
    for block in blocks(parts, have):
        if block.number == 9:
            while not list(root.glob("tokens/.building-*/00006.json")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        yield block

corpus.blocks = deadly
TokenStore.build(DataConfig("jsonl", path, processes=2), root)
"""


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "BLOCK_BYTES", BLOCK)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three files, of 300, 300 and one document, together some 300 kB."""
    folder, rng = tmp_path_factory.mktemp("lines"), np.random.default_rng(0)
    for name, count in (("a", 300), ("b", 300), ("c", 1)):
        rows = ({"text": "".join(map(chr, rng.integers(97, 123, n)))} for n in rng.integers(1, 1000, count))
        lines_of(folder / f"{name}.jsonl.zst", *rows)
    return str(folder / "*.jsonl.zst")


@pytest.fixture(scope="module")
def alone(path: str, small_blocks: None, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The store that one process makes."""
    return TokenStore.build(DataConfig("jsonl", path, processes=1), tmp_path_factory.mktemp("alone"))


def files_of(store: TokenStore) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.folder.iterdir()}


def test_every_document_is_in_one_of_many_shards(alone: TokenStore, path: str) -> None:
    assert len(alone.counts("tokens", "train")) > 14
    found = {d.name: d.text() for split in ("train", "test") for d in alone.documents(split)}  # type: ignore[arg-type]
    assert found == {d.name: d.text for d in read(DataConfig("jsonl", path)) if len(d.text) > 1}
    test = alone.documents("test")
    assert alone.total("documents", "test") == len(list(test)) > 20
    assert alone.total("tokens", "test") == sum(len(d.ids) for d in test) == int(test.lengths().sum())


def test_two_processes_write_the_same_bytes(alone: TokenStore, path: str, tmp_path: Path) -> None:
    told: list[tuple[float, float]] = []
    config = DataConfig("jsonl", path, processes=2)
    store = TokenStore.build(config, tmp_path, lambda done, total: told.append((done, total)))
    assert store.folder.name == alone.folder.name
    assert files_of(store) == files_of(alone)
    text = sum(store.total("bytes", split) for split in ("train", "test"))  # type: ignore[arg-type]
    assert told[-1] == (text, pytest.approx(text, rel=0.01))
    assert all(0 < done <= total * 1.01 for done, total in told)
    assert list((tmp_path / "tokens").glob(".building*")) == []


def test_after_a_kill_only_what_is_missing_is_done(alone: TokenStore, path: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, path, str(tmp_path), str(BLOCK)], check=False)
    assert done.returncode == -signal.SIGKILL
    (unfinished,) = (tmp_path / "tokens").glob(".building*")
    before = {file.name: file.stat().st_mtime_ns for file in unfinished.glob("[0-9]*")}
    assert 14 <= len(before) <= 20  # a .bin and a .json of blocks 0 to 6, and perhaps of 7 and 8
    store = TokenStore.build(DataConfig("jsonl", path, processes=1), tmp_path)
    assert files_of(store) == files_of(alone)
    whole = {name.split(".")[0] for name in before if name.endswith(".json")}
    for name in before:
        if name.split(".")[0] in whole:
            assert (store.folder / name).stat().st_mtime_ns == before[name]


def test_a_large_corpus_is_known_by_its_files(alone: TokenStore, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "blocks", lambda parts, have: pytest.fail("it is read"))
    root = alone.folder.parent.parent
    assert TokenStore.build(DataConfig("jsonl", path), root).hash == alone.hash
    first = Path(path).parent / "a.jsonl.zst"
    os.utime(first, ns=(0, 0))
    with pytest.raises(pytest.fail.Exception, match="it is read"):
        TokenStore.build(DataConfig("jsonl", path), root)


def test_parts_that_are_done_are_not_read() -> None:
    def items(*sizes: int) -> Any:
        return lambda: (Item(str(i), b"x" * size, i) for i, size in enumerate(sizes))

    def done(part: int, last: bool) -> Contents:
        return Contents("", part, last, 0, 0, {}, {}, {})

    def numbers(have: dict[int, Contents], first: Any) -> list[tuple[int, int, bool, int]]:
        found: Iterator[Block] = building.blocks([Part(first, 10, ""), Part(items(BLOCK, 1), 10, "")], have)
        return [(block.number, block.part, block.last, len(block.items)) for block in found]

    sizes = items(BLOCK, BLOCK // 2, BLOCK)
    assert numbers({}, sizes) == [
        (0, 0, False, 1),
        (1, 0, False, 2),
        (2, 0, True, 0),
        (3, 1, False, 1),
        (4, 1, True, 1),
    ]
    unread = lambda: pytest.fail("it is read")  # noqa: E731
    have = {number: done(0, number == 2) for number in range(3)}
    assert numbers(have, unread) == [(3, 1, False, 1), (4, 1, True, 1)]
    assert numbers({1: done(0, False), 3: done(1, False)}, sizes) == [
        (0, 0, False, 1),
        (2, 0, True, 0),
        (4, 1, True, 1),
    ]
