"""Rotary positions (Su et al., arXiv 2104.09864, equation 34), angles in float64, so that far positions stay exact."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0


def rotary(x: Tensor, positions: Tensor, theta: float = THETA) -> Tensor:
    """Turn x [..., L, f] by `positions` [L]: feature i and i + f / 2 are a pair, as in Llama."""
    half = x.shape[-1] // 2
    frequency = theta ** -(torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = positions.to(torch.float64)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
