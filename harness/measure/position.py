"""The `position` convention: the loss at every position, in one pass over whole test documents.

The NLL of every document × position is kept, so that this one pass gives every context length, every bucket and paired
intervals over documents. Nothing is added to a document (no BOS, no EOS) and nothing scored but its own bytes; the
first token has no context and no score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.data.tokens import TokenDocument
from harness.records import PositionCurve

Score = Callable[[np.ndarray], np.ndarray]
Advance = Callable[[int, int], None]


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

    `score` maps token ids [L] to nats [L - 1] of tokens 1 … L - 1. A score that is not finite is an ArithmeticError:
    a NaN must not be averaged away.
    """
    names, nlls = [], []
    total = sum(min(len(document.ids), max_length) for document in documents)
    for document in documents:
        ids = np.asarray(document.ids[:max_length])
        nll = score(ids).astype(np.float32)
        if not np.isfinite(nll).all():
            raise ArithmeticError(
                f"NLL of {document.name} is not finite at position {int(np.argmin(np.isfinite(nll)))}"
            )
        names.append(document.name)
        nlls.append(nll)
        advance(sum(len(n) + 1 for n in nlls), total)
    write_nll(path, names, nlls)
    return PositionCurve(
        nll_file=str(path.relative_to(run_folder)),
        documents=len(names),
        tokens=sum(len(nll) for nll in nlls),
        max_length=max_length,
        train_length=train_length,
    )


def write_nll(path: Path, names: Sequence[str], nlls: Sequence[np.ndarray]) -> None:
    """Write one row a document (name, nats per target token, bytes per target token) to a Parquet file."""
    table = pa.table(
        {
            "document": pa.array(names, pa.string()),
            "nll": pa.array(nlls, pa.list_(pa.float32())),
            "target_bytes": pa.array([np.ones(len(nll), np.uint16) for nll in nlls], pa.list_(pa.uint16())),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    pq.write_table(table, temporary)
    temporary.replace(path)
