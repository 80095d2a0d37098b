"""Tensors as the C++ operators of this floor take them, and the question whether they can take them at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from ctypes import Structure, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttt_impl.cpu.build import available, library


class Series(Structure):
    """`Series` of `_series.h`: values [B, L, *] whose last axis is contiguous."""

    _fields_ = (("data", c_void_p), ("row", c_int64), ("token", c_int64))


def series(values: Tensor) -> Series:
    """Where `values` [B, L, *] lie."""
    return Series(values.data_ptr(), values.stride(0), values.stride(1))


def with_channels_together(values: Tensor) -> Tensor:
    """`values`, copied only where the last axis is not contiguous."""
    return values if values.stride(-1) == 1 else values.contiguous()


@functools.cache
def operator(source: Path, name: str, result: type | None = None) -> Callable[..., Any]:
    """The function `name` of the library of `source`."""
    function = getattr(library(source), name)
    function.restype = result
    return function


def fits(x: Tensor, source: Path) -> bool:
    """Whether the operators of `source` take `x`: on a CPU, in float32 or less, and a compiler was found."""
    return x.device.type == "cpu" and x.dtype != torch.float64 and available(source)
