"""The root mean square norm as one operator of the CPU (`_rms_norm.cpp`); in PyTorch it is five."""

from __future__ import annotations

from ctypes import Structure, byref, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from baselines._series import operator

SOURCE = Path(__file__).with_name("_rms_norm.cpp")


class Norm(Structure):
    """`Norm` of the C++."""

    _fields_ = (
        ("rows", c_int64),
        ("width", c_int),
        ("threads", c_int),
        ("eps", c_float),
        *((name, c_void_p) for name in ("x", "weight", "y", "dy", "dx", "dweight")),
    )


def fused_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale `x` [..., H], float32, to unit root mean square, then by `weight` [H]."""
    if torch.is_grad_enabled():
        return _FusedNorm.apply(x.contiguous(), weight, eps)
    return _norm(x.contiguous(), weight, eps)


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _norm(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        dy, dx, dweight = dy.contiguous(), torch.empty_like(x), torch.empty_like(weight)
        pointers = (v.data_ptr() for v in (x, weight, x, dy, dx, dweight))
        operator(SOURCE, "norm_backward")(byref(Norm(*_sizes(x, ctx.eps), *pointers)))
        return dx, dweight, None


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty_like(x)
    operator(SOURCE, "norm_forward")(byref(Norm(*_sizes(x, eps), x.data_ptr(), weight.data_ptr(), y.data_ptr())))
    return y


def _sizes(x: Tensor, eps: float) -> tuple[int, int, int, float]:
    width = x.shape[-1]
    return x.numel() // width, width, torch.get_num_threads(), eps
