"""The recurrences as papers write them, one step at a time and differentiated by autograd, and inputs for them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS, CHANNELS, STATES = 2, 5, 3


def scan_step_by_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """y [B, L, D] and the last h [B, D, N], written down from equations 2 and 4 of arXiv 2312.00752."""
    outputs = []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        outputs.append((h * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(outputs, 1) * F.silu(z), h


def inputs(
    length: int,
    dtype: torch.dtype = torch.float64,
    forgets: float = 1.0,
    channels: int = CHANNELS,
    states: int = STATES,
) -> list[Tensor]:
    """x, dt, A, B, C, D, z and the initial state at random; `forgets` multiplies the exponents dt A."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, dt, z = (normal(ROWS, length, channels) for _ in range(3))
    A, D, state = -forgets * normal(channels, states).exp(), normal(channels), normal(ROWS, channels, states)
    values = [x, dt.exp(), A, normal(ROWS, length, states), normal(ROWS, length, states), D, z, state]
    return [value.to(dtype).requires_grad_() for value in values]


def gradients(outputs: tuple[Tensor, ...], values: list[Tensor]) -> list[Tensor]:
    """Of a fixed random weighting of the outputs, by each input."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    return list(torch.autograd.grad(outputs, values, weights))
