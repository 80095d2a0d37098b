"""The `position` convention: the loss at every position, in one pass over whole test documents.

The NLL of every document × position is kept, so that this one pass gives every context length, every bucket and paired
intervals over documents. Nothing is added to a document (no BOS, no EOS) and nothing scored but its own bytes; the
first token has no context and no score. A model with a tokenizer of its own reads the same bytes in its tokens, and
each token's bytes are kept beside its NLL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from baselines.interface import Encoded
from harness.data.tokens import TokenDocument
from harness.records import PositionCurve

Score = Callable[[np.ndarray], np.ndarray]
Encode = Callable[[bytes], Encoded]
Advance = Callable[[int, int], None]


def position_curve(
    score: Score,
    encode: Encode,
    documents: Sequence[TokenDocument],
    max_length: int,
    train_length: int | None,
    path: Path,
    run_folder: Path,
    advance: Advance,
) -> PositionCurve:
    """Score the first `max_length` bytes of each document and keep all of it at `path` inside `run_folder`.

    `encode` cuts them into tokens; `score` maps token ids [L] to nats [L - 1] of tokens 1 … L - 1. A score that is
    not finite is an ArithmeticError: a NaN must not be averaged away.
    """
    names, nlls, sizes, done = [], [], [], 0
    total = sum(min(len(document.ids), max_length) for document in documents)
    for document in documents:
        text = document.ids[:max_length].tobytes()
        encoded = encode(text)
        nll = score(encoded.ids).astype(np.float32)
        if not np.isfinite(nll).all():
            raise ArithmeticError(
                f"NLL of {document.name} is not finite at position {int(np.argmin(np.isfinite(nll)))}"
            )
        names.append(document.name)
        nlls.append(nll)
        sizes.append(encoded.sizes)
        done += len(text)
        advance(done, total)
    write_nll(path, names, nlls, sizes)
    return PositionCurve(
        nll_file=str(path.relative_to(run_folder)),
        documents=len(names),
        tokens=sum(len(nll) for nll in nlls),
        max_length=max_length,
        train_length=train_length,
    )


def write_nll(path: Path, names: Sequence[str], nlls: Sequence[np.ndarray], sizes: Sequence[np.ndarray]) -> None:
    """Write one row a document to a Parquet file: name, nats and bytes of each target token, bytes before the first.

    `sizes` holds the bytes of each document's tokens, the first included.
    """
    table = pa.table(
        {
            "document": pa.array(names, pa.string()),
            "nll": pa.array(nlls, pa.list_(pa.float32())),
            "target_bytes": pa.array([row[1:].astype(np.uint16) for row in sizes], pa.list_(pa.uint16())),
            "first_bytes": pa.array([row[0] for row in sizes], pa.uint16()),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    pq.write_table(table, temporary)
    temporary.replace(path)
