"""Values of several heads as the operators of attention take them, and the question whether they can take them."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from ttt_impl.cpu.build import library


class Heads(Structure):
    """`Heads` of `_heads.h`: values [B, heads, L, f] whose last axis is contiguous."""

    _fields_ = (("data", c_void_p), ("row", c_int64), ("head", c_int64), ("token", c_int64))


def heads(values: Tensor) -> Heads:
    """Where `values` [B, heads, L, f] lie."""
    return Heads(values.data_ptr(), *values.stride()[:3])


def empty_heads(like: Tensor) -> Tensor:
    """As `like` [B, heads, L, f], token by token in memory, as a projection takes it."""
    rows, count, length, width = like.shape
    return like.new_empty(rows, length, count, width).transpose(1, 2)


def fits(source: Path, *values: Tensor) -> bool:
    """Whether the operators of `source` take `values`: float32 on a CPU, not under a compiler, and one was found."""
    return (
        all(x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() for x in values)
        and not torch.compiler.is_compiling()
        and library(source) is not None
    )
