"""The `window` convention: perplexity of a long text read through a window, as most papers report it.

The window holds W tokens and moves on by a stride S. With S = W windows do not overlap, and their first targets have
next to no context; with S < W every target but those of the first window has more than W - S tokens before it. Every
token but the first of a document is scored exactly once, and the perplexity is that of all tokens together: never a
mean of windows' means, which would weigh a short last window like a full one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from harness.data.tokens import TokenDocument
from harness.measure.nll_file import Advance, Score, finite, write_nll
from harness.records import Window

TOKENS_AT_ONCE = 4096
"""Whole windows of a document run as rows of a batch of about so many tokens."""


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(first token, last token, targets) of each window over `length` tokens; the targets are its last ones."""
    scored = 0
    for begin in range(0, length - 1, stride):
        end = min(begin + window, length - 1)
        if end > scored:
            yield begin, end, end - scored
            scored = end


def windowed(
    score: Score,
    documents: Sequence[TokenDocument],
    max_length: int,
    window: int,
    stride: int,
    train_length: int | None,
    path: Path,
    run_folder: Path,
    advance: Advance,
) -> Window:
    """Score the first `max_length` tokens of each document through the window; all of it goes to `path`.

    A score that is not finite is an ArithmeticError.
    """
    names, nlls, sizes = [], [], []
    for index, document in enumerate(documents):
        ids = np.asarray(document.ids[:max_length])
        nlls.append(finite(_score_document(score, ids, window, stride), document.name, 0))
        names.append(document.name)
        sizes.append(document.bytes_of(0, len(ids)))
        advance(index + 1, len(documents))
    write_nll(path, names, nlls, [size[1:] for size in sizes], first_bytes=[int(size[0]) for size in sizes])
    return Window(
        nll_file=str(path.relative_to(run_folder)),
        documents=len(names),
        tokens=sum(len(nll) for nll in nlls),
        window=window,
        stride=stride,
        train_length=train_length,
    )


def _score_document(score: Score, ids: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Nats [L - 1]; windows of the same size and number of targets run together."""
    nll = np.full(len(ids) - 1, np.nan)
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for begin, end, targets in windows(len(ids), window, stride):
        groups.setdefault((end - begin, targets), []).append((begin, end))
    for (size, targets), places in groups.items():
        step = max(1, TOKENS_AT_ONCE // (size + 1))
        for first in range(0, len(places), step):
            batch = places[first : first + step]
            found = score(np.stack([ids[begin : end + 1] for begin, end in batch]), targets)
            for (_, end), row in zip(batch, found, strict=True):
                nll[end - targets : end] = row
    return nll
