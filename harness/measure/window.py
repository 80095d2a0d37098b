"""The `window` convention: perplexity of a long text read through a window, as most papers report it.

The window holds W bytes and moves on by a stride S. With S = W windows do not overlap, and their first targets have
next to no context; with S < W every target but those of the first window has more than W - S bytes before it. Every
token but the first of a document is scored exactly once, and the perplexity is that of all tokens together: never a
mean of windows' means, which would weigh a short last window like a full one. A model with a tokenizer of its own gets
the tokens that begin within the window, and is asked for those that end among its targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from harness.data.tokens import TokenDocument
from harness.measure.nll_file import Advance, Encode, Score, finite, write_nll
from harness.measure.reading import Reading, score_runs
from harness.records import Window

TOKENS_AT_ONCE = 4096
"""Whole windows of a document run as rows of a batch of about so many tokens."""


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(first byte, last byte, targets) of each window over `length` bytes; the targets are its last ones."""
    scored = 0
    for begin in range(0, length - 1, stride):
        end = min(begin + window, length - 1)
        if end > scored:
            yield begin, end, end - scored
            scored = end


def windowed(
    score: Score,
    encode: Encode,
    documents: Sequence[TokenDocument],
    max_length: int,
    window: int,
    stride: int,
    train_length: int | None,
    path: Path,
    run_folder: Path,
    advance: Advance,
) -> Window:
    """Score the first `max_length` bytes of each document through the window; all of it goes to `path`.

    A score that is not finite is an ArithmeticError.
    """
    names, nlls, sizes = [], [], []
    for index, document in enumerate(documents):
        reading = Reading.of(document.name, document.ids[:max_length], encode)
        nlls.append(finite(_score_document(score, reading, window, stride), document.name, 0))
        sizes.append(reading.sizes)
        names.append(document.name)
        advance(index + 1, len(documents))
    first = [int(size[0]) for size in sizes]
    write_nll(path, names, nlls, [size[1:] for size in sizes], first_bytes=first)
    return Window(
        nll_file=str(path.relative_to(run_folder)),
        documents=len(names),
        tokens=sum(len(nll) for nll in nlls),
        window=window,
        stride=stride,
        train_length=train_length,
    )


def _score_document(score: Score, reading: Reading, window: int, stride: int) -> np.ndarray:
    """Nats [L - 1] of all tokens but the first; windows of the same size and number of targets run together."""
    nll = np.full(len(reading.ids) - 1, np.nan)
    groups: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for begin, end, targets in windows(int(reading.ends[-1]), window, stride):
        first, last = np.searchsorted(reading.ends, (end + 1 - targets, end + 1), side="right")
        if last > (first := max(int(first), 1)):
            groups.setdefault((end - begin, targets), []).append((reading.since(begin, first), first, int(last)))
    for (size, _), places in groups.items():
        step = max(1, TOKENS_AT_ONCE // (size + 1))
        for index in range(0, len(places), step):
            batch = places[index : index + step]
            found = score_runs(score, [(reading.ids[since:last], last - first) for since, first, last in batch])
            for (_, first, last), row in zip(batch, found, strict=True):
                nll[first - 1 : last - 1] = row
    return nll
