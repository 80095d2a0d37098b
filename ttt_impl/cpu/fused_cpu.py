"""The path 'fused-cpu' of `ops.py`: whether a call fits the operators, and the call itself.

State goes in and out in the form that all paths share (`../state.py`), so a sequence may change path at any token.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_impl.cpu.arguments import Backward, Forward, Segments, point, problem, segments_of, view
from ttt_impl.cpu.build import available, library
from ttt_impl.layout import Layout
from ttt_impl.learner import PUBLISHED, Inputs, Learner, Weights
from ttt_impl.state import FastWeights, Rows, fold
from ttt_impl.step import closing_heads, opened

PATH = "fused-cpu"
EVERY = 64
"""Mini-batches between two checkpoints of W; `EVERY` of the C++."""
LARGEST = 128
"""Tokens of a mini-batch up to which its K x K scores stay in cache."""
LANES = 16
"""Of the widest vectors."""
SOURCES = {kind: Path(__file__).parent / f"ttt_{kind}.cpp" for kind in ("linear", "mlp")}


def supports(
    kind: str, inputs: Inputs, learner: Learner, layout: Layout, state: FastWeights | None, keep_state: bool,
    record: int, differentiated: bool,
) -> bool:  # fmt: skip
    """Whether `run` can take the call; compiles the operator at its first use."""
    packed, counted = layout.age is not None, layout.taken is not None and not layout.fill
    fits = (
        not counted and kind in SOURCES and learner == PUBLISHED
        and layout.size <= LARGEST and inputs.q.numel() > 0
        and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in inputs)
        and not (packed and (keep_state or state is not None))
        and not (differentiated and any(layout.fill))
        and (not record or is_step(layout, state, differentiated))
    )  # fmt: skip
    return fits and available(SOURCES[kind])


def is_step(layout: Layout, state: FastWeights | None, differentiated: bool) -> bool:
    """Whether a chunk stays inside the open mini-batch, so that the state can be changed in place."""
    return state is not None and layout.fits_open and not differentiated


@torch.compiler.disable
def run(
    kind: str, inputs: Inputs, weights: Weights, layout: Layout, state: FastWeights | None, keep_state: bool,
    differentiated: bool,
) -> tuple[Tensor, FastWeights | None, tuple[FastWeights, ...]]:  # fmt: skip
    """Output [B, H, L, f] and, if wanted, the state after it and a mini-batch that the chunk closed.

    As in `step.py`, a state is used up by a chunk that stays in its open mini-batch.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in inputs[:3])
    inputs = Inputs(q, k, v, inputs.lr, *(x.contiguous() for x in inputs[4:]))
    segments = segments_of(layout, len(q))
    if state is not None and is_step(layout, state, differentiated):
        return _step(kind, inputs, layout, state, segments)
    start = fold(weights, len(segments), True) if state is None else state.weights
    rows = state.rows if state is not None and any(layout.fill) else ()
    output, *after = _Scan.apply(*inputs, *(w.contiguous() for w in start), kind, segments, rows, keep_state)
    end = FastWeights(tuple(w.clone() for w in after[: len(start)]), tuple(after[len(start) :])) if keep_state else None
    return output, end, ()


def _step(
    kind: str, inputs: Inputs, layout: Layout, state: FastWeights, segments: Segments
) -> tuple[Tensor, FastWeights, tuple[FastWeights, ...]]:
    """Rows are written in place, weights anew where a mini-batch closes."""
    state = state.each(Tensor.contiguous)
    closing = closing_heads(layout, inputs.q.shape[1], inputs.q.device)
    new = () if closing is None else tuple(map(torch.empty_like, state.weights))
    output = _tokens(inputs.q, partial=False)
    arguments = Forward(p=problem(inputs, segments), out=view(output), keep_full=1)
    for field, tensors in (("start", state.weights), ("rows", state.rows), ("end", new), ("end_rows", state.rows)):
        point(getattr(arguments, field), tensors)
    _call(kind, "forward", arguments)
    if closing is None:
        return output, state, ()
    return output, opened(new, closing, state), (state,)


class _Scan(torch.autograd.Function):
    """(q, k, v, lr, tok, gamma, beta, W0 ...) -> (f(q) [B, H, L, f], W ... at the end, rows of the open mini-batch)."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        *tensors, kind, segments, rows, keep_state = given
        inputs, start = Inputs(*tensors[:7]), tensors[7:]
        output = _tokens(inputs.q, segments.tokens < inputs.q.shape[0] * inputs.q.shape[2])
        end, saved = [torch.empty_like(w) for w in start], any(ctx.needs_input_grad)
        tiles, checkpoints = _saved(inputs, start, segments) if saved else ((), ())
        open_rows = _rows(inputs, start) if keep_state else ()
        arguments = Forward(p=problem(inputs, segments), out=view(output))
        for field, x in (
            ("start", start), ("rows", rows), ("end", end), ("end_rows", open_rows),
            ("tiles", tiles), ("checkpoints", checkpoints),
        ):  # fmt: skip
            point(getattr(arguments, field), x)
        _call(kind, "forward", arguments)
        if saved:
            ctx.save_for_backward(*inputs, *end, *tiles, *checkpoints)
            ctx.kind, ctx.segments, ctx.weights = kind, segments, len(start)
        ctx.mark_non_differentiable(*end, *open_rows)
        return output, *end, *open_rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # asked for once: under activation checkpointing that computes them again
        inputs, rest, count = Inputs(*saved[:7]), saved[7:], ctx.weights
        end, tiles, checkpoints = rest[:count], rest[count : 2 * count], rest[2 * count :]
        partial = ctx.segments.tokens < dout.shape[0] * dout.shape[2]
        dout = dout if dout.stride(-1) == 1 else dout.contiguous()
        dq, dk, dv = (_tokens(dout, partial) for _ in range(3))
        dlr = torch.zeros_like(inputs.lr) if partial else torch.empty_like(inputs.lr)
        dstart = [torch.empty_like(w) for w in end]
        heads, width = inputs.gamma.shape
        dtok, dgamma, dbeta = (dout.new_empty(len(ctx.segments), heads, x) for x in (len(inputs.tok), width, width))
        arguments = Backward(
            p=problem(inputs, ctx.segments), dout=view(dout), dq=view(dq), dk=view(dk), dv=view(dv), dlr=view(dlr),
            dtok=dtok.data_ptr(), dgamma=dgamma.data_ptr(), dbeta=dbeta.data_ptr(),
        )  # fmt: skip
        for field, x in (("end", end), ("tiles", tiles), ("checkpoints", checkpoints), ("dstart", dstart)):
            point(getattr(arguments, field), x)
        _call(ctx.kind, "backward", arguments)
        sums = dtok.sum((0, 1)), dgamma.sum(0), dbeta.sum(0)
        return dq, dk, dv, dlr, *sums, *dstart, None, None, None, None


def _call(kind: str, direction: str, arguments: ctypes.Structure) -> None:
    operator = getattr(library(SOURCES[kind]), f"ttt_{kind}_{direction}")
    operator(ctypes.byref(arguments))


def _tokens(like: Tensor, partial: bool) -> Tensor:
    """Room for tokens [B, H, L, f] with the heads of a token side by side; zeros where some are padding."""
    batch, heads, length, width = like.shape
    room = like.new_zeros if partial else like.new_empty
    return room(batch, length, heads, width).transpose(1, 2)


def _saved(inputs: Inputs, start: list[Tensor], segments: Segments) -> tuple[list[Tensor], list[Tensor]]:
    """What the backward pass reads: the rows Ghat of all mini-batches, and W every now and then."""
    heads, lanes, count = len(inputs.gamma), -(-len(inputs.tok) // LANES) * LANES, segments.mini_batches
    tiles = [w.new_empty(count, heads, w.shape[2], lanes) for w in start]
    return tiles, [w.new_empty((count - 1) // EVERY, heads, *w.shape[1:]) for w in start]


def _rows(inputs: Inputs, start: list[Tensor]) -> Rows:
    """Empty rows of the open mini-batch."""
    widths = [start[0].shape[1], *(w.shape[2] for w in start), *(w.shape[1] for w in start[1:])]
    return tuple(start[0].new_zeros(len(start[0]), len(inputs.tok), width) for width in widths)
