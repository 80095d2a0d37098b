"""What lies between the products of a block, one pass over memory each (`pointwise.cpp`); differentiable once.

A norm is five operators of PyTorch and a rotation by complex numbers three, and each of them goes through memory. The
functions here take what `usable` lets through and leave all else to the plain formulas beside which they are called.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_impl.cpu.build import library

SOURCE = Path(__file__).parent / "pointwise.cpp"
CHUNK = 32
"""Tokens whose contributions to a sum are added first; `CHUNK` of `rows.h`."""


def usable(*tensors: Tensor | None) -> bool:
    """Whether tensors are of the kind that the operators take, and there is a compiler."""
    return all(x is None or (x.dtype == torch.float32 and x.device.type == "cpu") for x in tensors) and (
        not torch.compiler.is_compiling() and library(SOURCE) is not None
    )


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, [..., C]."""
    if torch.is_grad_enabled():
        y: Tensor = _SiluProduct.apply(gate.contiguous(), up.contiguous())
        return y
    return _gated(gate.contiguous(), up.contiguous())


def gated_norm(x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """[gelu(gate) *] LayerNorm(x), [..., C]."""
    y: Tensor = _GatedNorm.apply(x.contiguous(), None if gate is None else gate.contiguous(), weight, bias)
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight, [..., C]."""
    if torch.is_grad_enabled():
        y: Tensor = _RMSNorm.apply(x.contiguous(), weight, eps)
        return y
    return _normed(x.contiguous(), weight, eps)


def rotate_pairs(x: Tensor, rotation: Tensor) -> Tensor:
    """x [B, L, H, f] turned by rotation [1 or B, L, f / 2]."""
    y: Tensor = _Rotation.apply(x.contiguous(), rotation.contiguous())
    return y


def _call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Tensors go as pointers, integers as 64 bits, floats as doubles; the number of threads comes last."""
    operator = getattr(library(SOURCE), name)
    operator(*map(_argument, arguments), ctypes.c_int64(torch.get_num_threads()))


def _argument(x: Tensor | int | float | None) -> Any:
    if x is None or isinstance(x, Tensor):
        return ctypes.c_void_p(None if x is None else x.data_ptr())
    return ctypes.c_double(x) if isinstance(x, float) else ctypes.c_int64(x)


def _rows(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


def _sums(x: Tensor) -> Tensor:
    """Room for sums over the tokens of x, chunk by chunk."""
    return x.new_zeros(-(-_rows(x)[0] // CHUNK), x.shape[-1])


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _call("silu_product_backward", dgate, dup, dy.contiguous(), gate, up, *_rows(gate))
        return dgate, dup


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    y = torch.empty_like(gate)
    _call("silu_product", y, gate, up, *_rows(y))
    return y


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate, weight, bias)
        y = torch.empty_like(x)
        _call("gated_norm", y, x, gate, weight, bias, *_rows(x))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight, bias = ctx.saved_tensors
        dx, dgate = torch.empty_like(x), None if gate is None else torch.empty_like(gate)
        dweight, dbias = _sums(x), _sums(x)
        _call(
            "gated_norm_backward", dx, dgate, dweight, dbias, dy.contiguous(), x, gate, weight, bias, *_rows(x)
        )  # fmt: skip
        return dx, dgate, dweight.sum(0), dbias.sum(0)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = float(eps)
        return _normed(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), _sums(x)
        _call("rms_norm_backward", dx, dweight, dy.contiguous(), x, weight, *_rows(x), ctx.eps)
        return dx, dweight.sum(0), None


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty_like(x)
    _call("rms_norm", y, x, weight, *_rows(x), float(eps))
    return y


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(rotation)
        return _turned(x, rotation, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (rotation,) = ctx.saved_tensors
        return _turned(dy.contiguous(), rotation, 1), None


def _turned(x: Tensor, rotation: Tensor, back: int) -> Tensor:
    y = torch.empty_like(x)
    batch, length, heads, width = x.shape
    _call("rotate_pairs", y, x, rotation, batch * length, len(rotation) * length, heads, width, back)
    return y
