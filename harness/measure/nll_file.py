"""The NLL of single tokens on disk: every scoring convention keeps all of it, so any average can be taken later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from baselines.interface import Encoded
from harness.data.tokens import TokenDocument

Score = Callable[[np.ndarray, int], np.ndarray]
"""Maps rows of token ids [B, L] and a number n of targets to nats [B, n] of the last n tokens of each row."""

Encode = Callable[[TokenDocument, int], Encoded]
"""The text of a document's first so many tokens, in the tokens of a model."""

Advance = Callable[[int, int], None]
"""Told how many of how many tokens have been fed."""


def finite(nll: np.ndarray, document: str, position: int) -> np.ndarray:
    """`nll` [n] in float32, whose first element is token `position` + 1; ArithmeticError where it is not a number.

    A NaN must not be averaged away.
    """
    if not np.isfinite(nll).all():
        raise ArithmeticError(
            f"NLL of {document} is not finite at position {position + int(np.argmin(np.isfinite(nll)))}"
        )
    return nll.astype(np.float32)


def write_nll(
    path: Path,
    documents: Sequence[str],
    nlls: Sequence[np.ndarray],
    target_bytes: Sequence[np.ndarray],
    **columns: Sequence[Any],
) -> None:
    """Write rows (document, nats and bytes of each target token, and what `columns` add) to a Parquet file."""
    table = pa.table(
        {
            "document": pa.array(documents, pa.string()),
            **{name: pa.array(values) for name, values in columns.items()},
            "nll": pa.array(nlls, pa.list_(pa.float32())),
            "target_bytes": pa.array([row.astype(np.uint16) for row in target_bytes], pa.list_(pa.uint16())),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    pq.write_table(table, temporary)
    temporary.replace(path)
