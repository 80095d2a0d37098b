"""The `fixed_target` convention: the same target bytes given 16, 32, 64 … bytes of context.

On the `position` curve the tokens change along with the context: what stands at the beginning of a document is other
text than what stands in its middle. Here nothing but the context changes, so this is the curve that says what a longer
context is worth. Targets come in blocks of 16 bytes: a block given c of them costs c + 15, through the state, and its
bytes have c to c + 15 before them, never as many as the next context on the list. Blocks lie evenly spread over
what is left of a document behind the longest context; documents too short for that take no part, and contexts end where
fewer than five documents (or than there are) would be left. A model with a tokenizer of its own is asked for the tokens
that share bytes with a block, given those that lie within c bytes before them; each counts by its bytes in the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from harness.data.tokens import TokenDocument
from harness.measure.nll_file import Advance, Encode, Score, finite, write_nll
from harness.measure.reading import Reading, score_runs
from harness.records import FixedTarget
from harness.statistics import FEWEST_DOCUMENTS

BLOCK = 16
"""Bytes of a block of targets, and the shortest context."""
TOKENS_AT_ONCE = 4096
"""Blocks of one context run as rows of a batch of about so many tokens."""


def contexts_up_to(longest: int, lengths: Sequence[int]) -> list[int]:
    """16, 32, 64 … up to `longest`, as far as enough documents of these `lengths` have a block of targets behind it."""
    enough = sorted(lengths, reverse=True)[:FEWEST_DOCUMENTS]
    return [BLOCK << k for k in range((min(longest, enough[-1] - BLOCK) // BLOCK).bit_length())]


def block_starts(length: int, longest: int, blocks: int) -> list[int]:
    """First positions of up to `blocks` blocks in a document of `length` tokens, each with `longest` tokens before."""
    room = length - longest
    count = min(blocks, max(room // BLOCK, 0))
    return [longest + (room - BLOCK) * i // max(count - 1, 1) for i in range(count)]


def fixed_target(
    score: Score,
    encode: Encode,
    documents: Sequence[TokenDocument],
    longest: int,
    targets: int,
    train_length: int | None,
    path: Path,
    run_folder: Path,
    advance: Advance,
) -> FixedTarget:
    """Score `targets` bytes of each document at every context up to `longest`; all of it goes to `path`.

    ValueError where too few documents are long enough, ArithmeticError where a score is not finite.
    """
    contexts = contexts_up_to(longest, [len(document.ids) for document in documents])
    if not contexts:
        raise ValueError(f"fewer than {FEWEST_DOCUMENTS} test documents have {BLOCK} targets behind {BLOCK} tokens")
    blocks: list[tuple[Reading, int]] = []
    for document in documents:
        places = block_starts(len(document.ids), contexts[-1], targets // BLOCK)
        if places:
            reading = Reading.of(document.name, document.ids, encode)
            blocks += [(reading, start) for start in places]
    done, total = 0, len(blocks) * sum(context + BLOCK for context in contexts)
    names, starts, given, nlls, sizes = [], [], [], [], []
    for context in contexts:
        for batch in _batches(blocks, max(1, TOKENS_AT_ONCE // (context + BLOCK))):
            for (reading, start), (nll, inside) in zip(batch, _score_blocks(score, batch, context), strict=True):
                nlls.append(finite(nll, reading.name, start - 1))
                sizes.append(inside)
                names.append(reading.name)
                starts.append(start)
                given.append(context)
            done += len(batch) * (context + BLOCK)
            advance(done, total)
    write_nll(path, names, nlls, sizes, start=starts, context=given)
    return FixedTarget(
        nll_file=str(path.relative_to(run_folder)),
        documents=len({reading.name for reading, _ in blocks}),
        targets=len(blocks) * BLOCK,
        contexts=contexts,
        train_length=train_length,
    )


def _score_blocks(
    score: Score, blocks: Sequence[tuple[Reading, int]], context: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nats of each block of bytes given `context` bytes, and the bytes that they are about, by token."""
    spans = [reading.covering(start, start + BLOCK) for reading, start in blocks]
    runs = [
        (reading.ids[reading.since(int(reading.starts[begin]) - context, begin) : end], end - begin)
        for (reading, _), (begin, end) in zip(blocks, spans, strict=True)
    ]
    return [
        reading.shares(nll, begin, start, start + BLOCK)
        for (reading, start), (begin, _), nll in zip(blocks, spans, score_runs(score, runs), strict=True)
    ]


def _batches(blocks: list[tuple[Reading, int]], size: int) -> Iterator[list[tuple[Reading, int]]]:
    for first in range(0, len(blocks), size):
        yield blocks[first : first + size]
