"""The `position` convention: the loss at every position, in one pass over whole test documents.

The NLL of every document × position is kept, so that this one pass gives every context length, every bucket and paired
intervals over documents. Nothing is added to a document (no BOS, no EOS) and nothing scored but its own bytes; the
first token has no context and no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.data.tokens import TokenDocument
from harness.measure.nll_file import Advance, Score, finite, write_nll
from harness.records import PositionCurve


def position_curve(
    score: Score,
    documents: Sequence[TokenDocument],
    max_length: int,
    train_length: int | None,
    path: Path,
    run_folder: Path,
    advance: Advance,
) -> PositionCurve:
    """Score the first `max_length` tokens of each document and keep all of it at `path` inside `run_folder`.

    A score that is not finite is an ArithmeticError.
    """
    names, nlls = [], []
    total = sum(min(len(document.ids), max_length) for document in documents)
    for document in documents:
        ids = np.asarray(document.ids[:max_length])
        nlls.append(finite(score(ids[None], len(ids) - 1)[0], document.name, 0))
        names.append(document.name)
        advance(sum(len(n) + 1 for n in nlls), total)
    write_nll(path, names, nlls)
    return PositionCurve(
        nll_file=str(path.relative_to(run_folder)),
        documents=len(names),
        tokens=sum(len(nll) for nll in nlls),
        max_length=max_length,
        train_length=train_length,
    )
