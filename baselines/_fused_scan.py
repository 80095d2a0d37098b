"""Mamba's scan as one operator of the CPU, with all that surrounds it: softplus before, skip and gate after.

`_selective_scan.cpp` beside this module says how; here it is called and given to autograd. It computes in float32 and
reads its inputs where they lie: rows and tokens any way apart, channels together.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from baselines._precision import at_least_float32
from baselines._series import Series, operator, series, with_channels_together

SOURCE = Path(__file__).with_name("_selective_scan.cpp")


class Problem(Structure):
    """`Problem` of the C++."""

    _fields_ = (
        *((name, c_int) for name in ("rows", "length", "channels", "states", "threads")),
        *((name, Series) for name in ("x", "dt", "z", "B", "C")),
        *((name, c_void_p) for name in ("A", "D", "bias", "state", "starts")),
        ("y", Series),
        ("last", c_void_p),
    )


class Gradients(Structure):
    """`Gradients` of the C++."""

    _fields_ = (
        ("y", Series),
        ("last", c_void_p),
        *((name, Series) for name in ("x", "dt", "z")),
        *((name, c_void_p) for name in ("B", "C", "A", "D", "bias", "state")),
    )


@torch.compiler.disable
def fused_scan(
    x: Tensor, dt: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`selective_scan` of steps softplus(dt + bias): gated y [B, L, D] and the last state [B, D, N], float32."""
    if state is None:
        state = A.new_zeros(len(x), *A.shape)
    by_token = (with_channels_together(at_least_float32(v)) for v in (x, dt, z, B, C))
    rest = (at_least_float32(v).contiguous() for v in (A, D, bias, state))
    return _FusedScan.apply(*by_token, *rest, torch.is_grad_enabled())


class _FusedScan(torch.autograd.Function):
    """x, dt, z [B, L, D], B, C [B, L, N], A [D, N], D, bias [D], state [B, D, N] -> y [B, L, D], last state [B, D, N].

    `saves` tells whether a backward can follow, which needs the state at each chunk's start.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, state, saves = arguments
        problem = _problem(*inputs)
        starts = state.new_empty(operator(SOURCE, "starts_size", c_int64)(byref(problem)) if saves else 0)
        y, last = torch.empty_like(inputs[0], memory_format=torch.contiguous_format), torch.empty_like(state)
        problem.state, problem.starts = state.data_ptr(), starts.data_ptr()
        problem.y, problem.last = series(y), last.data_ptr()
        operator(SOURCE, "scan_forward")(byref(problem))
        ctx.save_for_backward(*inputs, starts)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        problem = _problem(*inputs)
        problem.starts = starts.data_ptr()
        grad_y, grad_last = with_channels_together(grad_y), grad_last.contiguous()
        grads = [torch.empty_like(v, memory_format=torch.contiguous_format) for v in (*inputs, grad_last)]
        by_token, rest = [series(v) for v in grads[:3]], [v.data_ptr() for v in grads[3:]]
        gradients = Gradients(series(grad_y), grad_last.data_ptr(), *by_token, *rest)
        operator(SOURCE, "scan_backward")(byref(problem), byref(gradients))
        return *grads, None


def _problem(*inputs: Tensor) -> Problem:
    x, dt, z, B, C, A, D, bias = inputs
    problem = Problem(*x.shape, A.shape[1], torch.get_num_threads(), *(series(v) for v in (x, dt, z, B, C)))
    problem.A, problem.D, problem.bias = A.data_ptr(), D.data_ptr(), bias.data_ptr()
    return problem
