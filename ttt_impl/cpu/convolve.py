"""The causal depthwise convolution as one operator (`convolve.cpp`), if asked for with the SiLU after it."""

import ctypes
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_impl.cpu.build import library
from ttt_impl.cpu.pointwise import CHUNK

SOURCE = Path(__file__).parent / "convolve.cpp"


class _Arguments(ctypes.Structure):
    """Mirrors `struct Convolution`."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("x", "past", "w", "bias", "age", "y", "dx", "dw", "dbias", "dy")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "width", "taps", "silu", "threads")),
    ]


@torch.compiler.disable
def convolve(
    x: Tensor, past: Tensor | None, weight: Tensor, bias: Tensor, age: Tensor | None = None, silu: bool = False
) -> Tensor:
    """y_t = [silu](bias + sum_j weight_j x_(t - j)): x [B, L, C], weight [C, 1, taps]; no gradient reaches `past`.

    `past` [B, taps - 1, C] came before x (None: zeros), `age` [B, L] is how far back each token may look.
    """
    taps = weight[:, 0].T.contiguous()
    held = None if past is None else past.detach().contiguous()
    y: Tensor = _Convolution.apply(x.contiguous(), held, taps, bias, None if age is None else age.contiguous(), silu)
    return y


class _Convolution(torch.autograd.Function):
    """(x [B, L, C], past [B, taps - 1, C] or None, w [taps, C], bias [C], age [B, L] or None, silu) -> [B, L, C]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, past: Tensor | None, w: Tensor, bias: Tensor, age: Tensor | None, silu: bool
    ) -> Tensor:
        ctx.save_for_backward(x, past, w, bias, age)
        ctx.silu = silu
        y = torch.empty_like(x)
        _call("convolve", silu, x=x, past=past, w=w, bias=bias, age=age, y=y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, past, w, bias, age = ctx.saved_tensors
        dx, dy, items = torch.empty_like(x), dy.contiguous(), len(x) * -(-x.shape[1] // CHUNK)
        dw, dbias = x.new_zeros(items, *w.shape), x.new_zeros(items, len(bias))
        _call(
            "convolve_backward", ctx.silu, x=x, past=past, w=w, bias=bias, age=age, dx=dx, dw=dw, dbias=dbias, dy=dy
        )  # fmt: skip
        return dx, None, dw.sum(0), dbias.sum(0), None, None


def _call(name: str, silu: bool, x: Tensor, w: Tensor, **tensors: Tensor | None) -> None:
    batch, length, width = x.shape
    arguments = _Arguments(
        x=x.data_ptr(), w=w.data_ptr(), batch=batch, length=length, width=width, taps=len(w), silu=silu,
        threads=torch.get_num_threads(), **{n: None if t is None else t.data_ptr() for n, t in tensors.items()},
    )  # fmt: skip
    getattr(library(SOURCE), name)(ctypes.byref(arguments))
