"""The CUDA kernels of mamba-ssm and causal-conv1d, where they are installed; imported at first use.

Both packages import only where their compiled parts do, so their absence is normal and means the scan in PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class MambaKernels(NamedTuple):
    """The three functions a mixer needs; layouts are the packages' own: [B, D, L], states [B, D, N]."""

    causal_conv: Callable[..., Tensor]
    selective_scan: Callable[..., tuple[Tensor, Tensor]]
    state_update: Callable[..., Tensor]


def kernels_for(x: Tensor) -> MambaKernels | None:
    """The kernels that can take `x`; none for a CPU or for float64."""
    return _installed() if x.is_cuda and x.dtype != torch.float64 else None


def ssd_kernel_for(x: Tensor) -> Callable[..., Any] | None:
    """mamba-ssm's `mamba_chunk_scan_combined` (Mamba-2) if it can take `x`; layouts [B, L, heads, P], [B, L, G, N]."""
    return _installed_ssd() if x.is_cuda and x.dtype != torch.float64 else None


@functools.cache
def _installed_ssd() -> Callable[..., Any] | None:
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        return None
    return mamba_chunk_scan_combined


@functools.cache
def _installed() -> MambaKernels | None:
    try:
        from causal_conv1d import causal_conv1d_fn
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    except ImportError:
        return None
    return MambaKernels(causal_conv1d_fn, selective_scan_fn, selective_state_update)
