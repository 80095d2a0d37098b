"""Rotary positions (Su et al., arXiv 2104.09864, equation 34), angles in float64, so that far positions stay exact.

Turning is one pass over memory (`_rotary.cpp`); in PyTorch it is five.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from baselines._heads import Heads, empty_heads, fits, heads
from baselines._series import operator, with_channels_together

SOURCE = Path(__file__).with_name("_rotary.cpp")
THETA = 10_000.0


class Problem(Structure):
    """`Problem` of the C++."""

    _fields_ = (
        *((name, c_int) for name in ("rows", "heads", "length", "width", "threads")),
        ("sign", c_float),
        *((name, Heads) for name in ("x", "y")),
        *((name, c_void_p) for name in ("cos", "sin")),
        *((name, c_int64) for name in ("row", "token")),
    )


def rotary(x: Tensor, positions: Tensor, theta: float = THETA) -> Tensor:
    """Turn x [..., L, f] by `positions` [L]: feature i and i + f / 2 are a pair, as in Llama."""
    half = x.shape[-1] // 2
    frequency = theta ** -(torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = positions.to(torch.float64)[:, None] * frequency
    return turned(x, angle.cos().to(x.dtype), angle.sin().to(x.dtype))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., L, f] turned by angles of which `cos` and `sin` [..., L, f / 2] are given."""
    if x.ndim == 4 and fits(SOURCE, x, cos, sin):
        y: Tensor = _Rotation.apply(with_channels_together(x), *map(with_channels_together, (cos, sin)))
        return y
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class _Rotation(torch.autograd.Function):
    """x [B, heads, L, f]; cos, sin [L, f / 2] or [1 or B, 1, L, f / 2]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(with_channels_together(dy), cos, sin, -1.0), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    y, (rows, count, length, width) = empty_heads(x), x.shape
    row = cos.stride(0) if cos.ndim == 4 and len(cos) > 1 else 0
    angles = (cos.data_ptr(), sin.data_ptr(), row, cos.stride(-2))
    problem = Problem(rows, count, length, width, torch.get_num_threads(), sign, heads(x), heads(y), *angles)
    operator(SOURCE, "rotate")(byref(problem))
    return y
