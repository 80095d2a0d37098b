"""What the operators are handed: the structs of `problem.h`, field by field.

Every field is a pointer or 64 bits wide, so C++ and ctypes agree on the layout.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ttt_impl.layout import Layout
from ttt_impl.learner import Inputs


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


def _integers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int64) for name in names]


def _arrays(**sizes: int) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p * size) for name, size in sizes.items()]


class View(ctypes.Structure):
    """A tensor [B, H, L, f] or [B, H, L] at any strides; features lie side by side."""

    _fields_: ClassVar = [*_pointers("x"), *_integers("batch", "head", "token")]


class Segment(ctypes.Structure):
    """Tokens of one row that share fast weights; `before` counts the mini-batches of the segments before."""

    _fields_: ClassVar = _integers("row", "first", "tokens", "taken", "before")


class Problem(ctypes.Structure):
    """Mirrors `struct Problem`."""

    _fields_: ClassVar = [
        *((name, View) for name in ("q", "k", "v", "lr")),
        *_pointers("tok", "gamma", "beta", "segments"),
        *_integers("count", "heads", "width", "size", "threads"),
    ]


class Forward(ctypes.Structure):
    """Mirrors `struct Forward`."""

    _fields_: ClassVar = [
        ("p", Problem),
        ("out", View),
        *_arrays(start=2, rows=4, end=2, end_rows=4, tiles=2, checkpoints=2),
        *_integers("keep_full"),
    ]


class Backward(ctypes.Structure):
    """Mirrors `struct Backward`."""

    _fields_: ClassVar = [
        ("p", Problem),
        *((name, View) for name in ("dout", "dq", "dk", "dv", "dlr")),
        *_arrays(end=2, tiles=2, checkpoints=2, dstart=2),
        *_pointers("dtok", "dgamma", "dbeta"),
    ]


class Segments:
    """The table of segments of a layout for `batch` rows."""

    def __init__(self, rows: list[tuple[int, int, int, int]], size: int) -> None:
        self.table, before = (Segment * len(rows))(), 0
        self.tokens = sum(tokens for _, _, tokens, _ in rows)
        for entry, (row, first, tokens, taken) in zip(self.table, rows, strict=True):
            entry.row, entry.first, entry.tokens, entry.taken, entry.before = row, first, tokens, taken, before
            before += -(-(tokens + taken) // size)
        self.mini_batches = before

    def __len__(self) -> int:
        return len(self.table)


@functools.lru_cache(256)
def whole_rows(batch: int, length: int, size: int, fill: tuple[int, ...]) -> Segments:
    """Every row is a segment."""
    return Segments([(row, 0, length, fill[row] if fill else 0) for row in range(batch)], size)


def segments_of(layout: Layout, batch: int) -> Segments:
    """Segments of packed documents, of rows behind their padding, or whole rows."""
    if layout.age is not None:
        places = (layout.age == 0).nonzero().tolist()
        ends = [*(first for _, first in places[1:]), 0]
        return Segments(
            [(row, first, (end or layout.length) - first, 0) for (row, first), end in zip(places, ends, strict=True)],
            layout.size,
        )
    if layout.padding is None:
        return whole_rows(batch, layout.length, layout.size, layout.fill)
    padding = layout.padding.sum(1).tolist()
    rows = [(row, n, layout.length - n, layout.fill[row]) for row, n in enumerate(padding)]
    return Segments(rows, layout.size)


def view(x: Tensor) -> View:
    """x [B, H, L, f] or [B, H, L]."""
    return View(x.data_ptr(), *x.stride()[:3])


def point(to: "ctypes.Array[ctypes.c_void_p]", tensors: Sequence[Tensor]) -> None:
    """Set the first pointers of an array."""
    for i, x in enumerate(tensors):
        to[i] = x.data_ptr()


def problem(inputs: Inputs, segments: Segments) -> Problem:
    """Inputs whose features lie side by side."""
    q, k, v, lr, tok, gamma, beta = inputs
    heads, width = gamma.shape
    return Problem(
        view(q), view(k), view(v), view(lr), tok.data_ptr(), gamma.data_ptr(), beta.data_ptr(),
        ctypes.addressof(segments.table), len(segments), heads, width, len(tok), torch.get_num_threads(),
    )  # fmt: skip
