"""Rotary position embedding inside the mini-batch.

The official layer rotates queries and keys by their place in the mini-batch (position mod K), not in the sequence:
the fast weights carry what lies further back. It turns the neighbouring pairs (2i, 2i + 1), the original convention
(arXiv 2104.09864, Eq. 34), where most PyTorch models turn (i, i + f/2); a pair is a complex number and its rotation
one product.
"""

import torch
from torch import Tensor

from ttt_impl.cpu.pointwise import rotate_pairs, usable


def rotations(size: int, width: int, theta: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """exp(i * place * theta^(-2 i / f)) for the K places of a mini-batch, complex [K, f / 2]."""
    frequency = theta ** -(torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
    angle = torch.arange(size, dtype=torch.float64, device=device)[:, None] * frequency
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    return torch.polar(torch.ones_like(angle), angle).to(complex_dtype)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs of x [B, L, H, f] by rotation [1 or B, L, f / 2]."""
    if usable(x) and rotation.dtype == torch.complex64:
        return rotate_pairs(x, rotation)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation[:, :, None]).flatten(-2)
