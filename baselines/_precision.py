"""Recurrences and norms compute in float32, or in float64 when the model does.

transformers' norms go through float32 whatever the model's type. A float64 model then rounds to float32 at every
layer, and tests at 1e-10, which tell a wrong formula from rounding, mean nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttt_impl.cpu.pointwise import rms_norm, usable


def at_least_float32(value: Tensor) -> Tensor:
    """`value` in float32, or in float64 if it already is."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


class RMSNorm(nn.Module):
    """Zhang & Sennrich, arXiv 1910.07467, equation 4; parameters as in transformers' norms."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Scale `hidden_states` [..., H] to unit root mean square, then by the learned weight."""
        if usable(hidden_states, self.weight):
            return rms_norm(hidden_states, self.weight, self.variance_epsilon)
        wide = at_least_float32(hidden_states)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(hidden_states.dtype)


def widen_norms(model: nn.Module, norm: type[nn.Module]) -> None:
    """Let every `norm` in `model` compute as `RMSNorm` does; its parameters stay."""
    for module in model.modules():
        if isinstance(module, norm):
            module.__class__ = RMSNorm
