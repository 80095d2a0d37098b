"""One token through the middle of Mamba's layer as one operator of the CPU (`_mamba_step.cpp`)."""

from __future__ import annotations

from ctypes import Structure, byref, c_int, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from baselines._series import operator

SOURCE = Path(__file__).with_name("_mamba_step.cpp")


class Step(Structure):
    """`Step` of the C++."""

    _fields_ = (
        *((name, c_int) for name in ("rows", "channels", "states", "width", "rank", "threads")),
        *((name, c_void_p) for name in ("xz", "window", "state", "weight", "bias", "select", "project")),
        *((name, c_void_p) for name in ("project_bias", "A_log", "D", "y")),
    )


def mamba_step(xz: Tensor, window: Tensor, state: Tensor, *parameters: Tensor) -> Tensor:
    """Gated output [B, D] of the first projection's `xz` [B, 2 D]; `window` [B, D, K] and `state` [B, D, N] move on.

    `parameters`, as the layer has them: weight [D, 1, K] and bias [D] of the convolution, weight [R + 2 N, D] of the
    selection, weight [D, R] and bias [D] of the time step, A_log [D, N] and D [D]. All float32 and contiguous.
    """
    rows, channels, width = window.shape
    y = xz.new_empty(rows, channels)
    sizes = rows, channels, state.shape[2], width, parameters[3].shape[1], torch.get_num_threads()
    tensors = xz, window, state, *parameters, y
    operator(SOURCE, "mamba_step")(byref(Step(*sizes, *(v.data_ptr() for v in tensors))))
    return y
