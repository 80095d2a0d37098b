"""Mamba's short convolution with the SiLU after it, as one operator of the CPU (`_causal_conv.cpp`)."""

from __future__ import annotations

from ctypes import Structure, byref, c_int, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from baselines._precision import at_least_float32
from baselines._series import Series, operator, series, with_channels_together

SOURCE = Path(__file__).with_name("_causal_conv.cpp")


class Convolution(Structure):
    """`Convolution` of the C++."""

    _fields_ = (
        *((name, c_int) for name in ("rows", "length", "channels", "width", "threads")),
        ("x", Series),
        ("past", Series),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("y", Series),
        ("dx", Series),
        ("dweight", c_void_p),
        ("dbias", c_void_p),
    )


def fused_conv(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of the convolution of `x` [B, L, D] after `past` [B, K - 1, D], float32; no gradient reaches `past`.

    `weight` is [D, 1, K] as in a depthwise `Conv1d`, `bias` [D].
    """
    ready = (with_channels_together(at_least_float32(v)) for v in (x, past.detach()))
    return _FusedConv.apply(*ready, at_least_float32(weight).squeeze(1).t().contiguous(), at_least_float32(bias))


class _FusedConv(torch.autograd.Function):
    """x [B, L, D], past [B, K - 1, D], weight [K, D], bias [D] -> y [B, L, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, past, weight, bias)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        call = _call(x, past, weight, bias, y)
        operator(SOURCE, "conv_forward")(byref(call))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, past, weight, bias = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
        call = _call(x, past, weight, bias, with_channels_together(grad_y))
        call.dx, call.dweight, call.dbias = series(dx), dweight.data_ptr(), dbias.data_ptr()
        operator(SOURCE, "conv_backward")(byref(call))
        return dx, None, dweight, dbias


def _call(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> Convolution:
    pointers = weight.data_ptr(), bias.data_ptr()
    return Convolution(*x.shape, len(weight), torch.get_num_threads(), series(x), series(past), *pointers, series(y))
