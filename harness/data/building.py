"""Tokenises a corpus once: one process reads, several tokenise, and every shard that is written stays written.

The reader cuts each part of the corpus into blocks of consecutive documents of about 64 MiB, and a block becomes a
shard. Where blocks begin depends on the text alone, so the bytes are the same whatever the number of processes, and
after any interruption (`kill -9` too) only blocks without a shard are done again. Parts that are done are not even
read; of a part that was begun the reader passes over the blocks that are there, which costs reading alone.

The first 64 MiB are tokenised without other processes, so a small corpus starts none. Memory: a block of every process
in the reader and one more, and in each process two.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from harness.data.config import DataConfig
from harness.data.shard import Contents, read_contents
from harness.data.sources import Part, Split
from harness.data.vocabulary import Vocabulary
from harness.data.writing import tokenise
from harness.processes import die_with_parent

BLOCK_BYTES = 64 << 20

Advance = Callable[[float, float], None]
"""Told how many bytes of text are done, and of how many, by an estimate from what was read of the parts."""


@dataclass(frozen=True)
class Block:
    """Consecutive documents (name, raw) of a part, which `last` says end it; `read` of all parts' sizes up to here."""

    number: int
    part: int
    last: bool
    split: Split | None
    items: list[tuple[str, bytes]]
    read: int


def stem_of(folder: Path, number: int) -> Path:
    """The path of a shard, without ending."""
    return folder / f"{number:05d}"


def written(folder: Path) -> dict[int, Contents]:
    """The shards in `folder` that are whole, by number."""
    return {int(path.stem): read_contents(path) for path in folder.glob("[0-9]*.json")}


def blocks(parts: Sequence[Part], have: dict[int, Contents]) -> Iterator[Block]:
    """The blocks without a shard among those in `have`, in order."""
    number = before = 0
    for index, part in enumerate(parts):
        done = _past(number, index, have)
        if done is None:
            for items, last, read in _cut(part, BLOCK_BYTES):
                if number not in have:
                    yield Block(number, index, last, part.split, items, before + read)
                number += 1
        else:
            number = done
        before += part.size


def _past(number: int, part: int, have: dict[int, Contents]) -> int | None:
    """The number after the last block of a part that begins with block `number`, if all its shards are there."""
    while (contents := have.get(number)) is not None and contents.part == part:
        number += 1
        if contents.last:
            return number
    return None


def _cut(part: Part, block_bytes: int) -> Iterator[tuple[list[tuple[str, bytes]], bool, int]]:
    """(items, whether they are the last, how much was read) of each block of a part; the last may be empty."""
    items: list[tuple[str, bytes]] = []
    size = 0
    for name, raw, read in part.items():
        items.append((name, raw))
        size += len(raw)
        if size >= block_bytes:
            yield items, False, read
            items, size = [], 0
    yield items, True, part.size


def shard_of(folder: Path, block: Block, vocabulary: Vocabulary, config: DataConfig) -> Contents:
    """Tokenise a block and write its shard; what it holds."""
    stem, place = stem_of(folder, block.number), (block.part, block.last)
    return tokenise(stem, block.items, block.split, place, vocabulary, config)


def in_processes(
    stream: Iterator[Block], size: int, folder: Path, vocabulary: Vocabulary, config: DataConfig, advance: Advance
) -> dict[int, Contents]:
    """What the shards of the blocks of `stream` hold, by number; but for the first, several processes write them."""
    processes = config.processes or len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    waiting: dict[Future[Contents], tuple[int, int]] = {}
    found: dict[int, Contents] = {}
    text = furthest = here = 0
    while here < BLOCK_BYTES and (block := next(stream, None)) is not None:
        found[block.number] = shard_of(folder, block, vocabulary, config)
        text, furthest = text + sum(found[block.number].bytes.values()), block.read
        here += sum(len(raw) for _, raw in block.items)
    with ProcessPoolExecutor(processes, context, _begin, (folder, vocabulary, config)) as pool:
        try:
            while True:
                for block in itertools.islice(stream, processes + 1 - len(waiting)):
                    waiting[pool.submit(_here, block)] = block.number, block.read
                if not waiting:
                    return found
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    number, read = waiting.pop(future)
                    found[number] = future.result()
                    text, furthest = text + sum(found[number].bytes.values()), max(furthest, read)
                if furthest:
                    advance(text, text * size / furthest)
        except BrokenProcessPool:
            raise ValueError("a tokenising process was killed (out of memory?): the same command goes on") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_WORK: tuple[Path, Vocabulary, DataConfig] | None = None
"""In a tokenising process: what all its blocks have in common."""


def _begin(folder: Path, vocabulary: Vocabulary, config: DataConfig) -> None:
    """Set up a tokenising process: it ends with its parent, and its tokenizer runs on one thread."""
    global _WORK
    die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _WORK = folder, vocabulary, config


def _here(block: Block) -> Contents:
    assert _WORK is not None
    folder, vocabulary, config = _WORK
    return shard_of(folder, block, vocabulary, config)
