"""The diagonal linear recurrence h_t = a_t ∘ h_{t-1} + b_t: one scan for every model that is built on it.

Gated linear RNNs, HGRN, RG-LRU and the diagonal state spaces differ in how they make a and b from their input, and
agree on this. On a CPU in float32 it runs as one C++ operator (`_linear_recurrence.cpp`); elsewhere, in float64 or
without a compiler, as a loop of one PyTorch operation a step, forward and back, which autograd does not see.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_int
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from baselines._precision import at_least_float32
from baselines._series import Series, fits, operator, series, with_channels_together

SOURCE = Path(__file__).with_name("_linear_recurrence.cpp")


@torch.compiler.disable
def linear_recurrence(a: Tensor, b: Tensor, state: Tensor | None = None) -> Tensor:
    """All h [B, L, ...] of `b` [B, L, ...] and of `a`, broadcast to b's shape, after `state` [B, ...] or zero.

    The last h, `h[:, -1]`, is the state to go on from. Lower precisions are computed in float32; differentiable in
    every argument.
    """
    wide = at_least_float32(b)
    if state is None:
        state = torch.zeros_like(wide[:, 0])
    flat = [at_least_float32(v).expand(b.shape).flatten(2) for v in (a, wide)]
    h = _LinearRecurrence.apply(*(with_channels_together(v) for v in flat), at_least_float32(state).flatten(1))
    return h.view(b.shape).to(b.dtype)


def linear_step(state: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The next h [B, ...] after `state` [B, ...], in place."""
    return state.mul_(a).add_(b)


class _LinearRecurrence(torch.autograd.Function):
    """a, b [B, L, D], state [B, D] -> h [B, L, D]."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, state: Tensor) -> Tensor:
        h = torch.empty_like(b, memory_format=torch.contiguous_format)
        if fits(b, SOURCE):
            call = _call(a, b, state, h)
            operator(SOURCE, "recurrence_forward")(byref(call))
        else:
            before = state
            for a_t, b_t, h_t in zip(a.unbind(1), b.unbind(1), h.unbind(1), strict=True):
                before = torch.addcmul(b_t, a_t, before, out=h_t)
        ctx.save_for_backward(a, state.clone(), h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, state, h = ctx.saved_tensors
        da, db, dstate = torch.empty_like(h), torch.empty_like(h), torch.empty_like(state)
        if fits(h, SOURCE):
            dh = with_channels_together(dh)
            call = _call(a, h, state, h)
            call.dh, call.da, call.db, call.dstate = (series(v) for v in (dh, da, db, dstate.unsqueeze(1)))
            operator(SOURCE, "recurrence_backward")(byref(call))
            return da, db, dstate
        carry = torch.zeros_like(state)
        for a_t, dh_t, db_t in zip(*(reversed(v.unbind(1)) for v in (a, dh, db)), strict=True):
            carry = torch.add(dh_t, carry, out=db_t) * a_t
        torch.mul(db[:, 1:], h[:, :-1], out=da[:, 1:])
        torch.mul(db[:, 0], state, out=da[:, 0])
        return da, db, carry


class Recurrence(Structure):
    """`Recurrence` of the C++."""

    _fields_ = (
        *((name, c_int) for name in ("rows", "length", "channels", "threads")),
        *((name, Series) for name in ("a", "b", "state", "h", "dh", "da", "db", "dstate")),
    )


def _call(a: Tensor, b: Tensor, state: Tensor, h: Tensor) -> Recurrence:
    return Recurrence(*b.shape, torch.get_num_threads(), *(series(v) for v in (a, b, state.unsqueeze(1), h)))
