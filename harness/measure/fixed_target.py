"""The `fixed_target` convention: the same target tokens given 16, 32, 64 … tokens of context.

On the `position` curve the tokens change along with the context: what stands at the beginning of a document is other
text than what stands in its middle. Here nothing but the context changes, so this is the curve that says what a longer
context is worth. Targets come in blocks of 16 tokens: a block given c tokens costs c + 15, through the state, and its
tokens have c to c + 15 tokens before them, never as many as the next context on the list. Blocks lie evenly spread over
what is left of a document behind the longest context; documents too short for that take no part, and contexts end where
fewer than five documents (or than there are) would be left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from harness.data.tokens import TokenDocument
from harness.measure.nll_file import Advance, Score, finite, write_nll
from harness.records import FixedTarget
from harness.statistics import FEWEST_DOCUMENTS

BLOCK = 16
"""Tokens of a block of targets, and the shortest context."""
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
    documents: Sequence[TokenDocument],
    longest: int,
    targets: int,
    train_length: int | None,
    path: Path,
    run_folder: Path,
    advance: Advance,
) -> FixedTarget:
    """Score `targets` tokens of each document at every context up to `longest`; all of it goes to `path`.

    ValueError where too few documents are long enough, ArithmeticError where a score is not finite.
    """
    contexts = contexts_up_to(longest, [len(document.ids) for document in documents])
    if not contexts:
        raise ValueError(f"fewer than {FEWEST_DOCUMENTS} test documents have {BLOCK} targets behind {BLOCK} tokens")
    blocks = [
        (document, start)
        for document in documents
        for start in block_starts(len(document.ids), contexts[-1], targets // BLOCK)
    ]
    done, total = 0, len(blocks) * sum(context + BLOCK for context in contexts)
    names, starts, given, nlls, sizes = [], [], [], [], []
    for context in contexts:
        for batch in _batches(blocks, max(1, TOKENS_AT_ONCE // (context + BLOCK))):
            rows = np.stack([document.ids[start - context : start + BLOCK] for document, start in batch])
            for (document, start), nll in zip(batch, score(rows, BLOCK), strict=True):
                nlls.append(finite(nll, document.name, start - 1))
                names.append(document.name)
                starts.append(start)
                sizes.append(document.bytes_of(start, start + BLOCK))
                given.append(context)
            done += rows.size
            advance(done, total)
    write_nll(path, names, nlls, sizes, start=starts, context=given)
    return FixedTarget(
        nll_file=str(path.relative_to(run_folder)),
        documents=len({document.name for document, _ in blocks}),
        targets=len(blocks) * BLOCK,
        contexts=contexts,
        train_length=train_length,
    )


def _batches(blocks: list[tuple[TokenDocument, int]], size: int) -> Iterator[list[tuple[TokenDocument, int]]]:
    for first in range(0, len(blocks), size):
        yield blocks[first : first + size]
