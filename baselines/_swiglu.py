"""silu(gate) * up, the middle of Shazeer's SwiGLU (arXiv 2002.05202): one operator of the CPU, in PyTorch two.

Every family with such a layer takes it from here, so that none is timed with a slower one.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaMLP

from ttt_impl.cpu.pointwise import silu_product, usable


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, [..., C]."""
    return silu_product(gate, up) if usable(gate, up) else F.silu(gate) * up


class GatedMLP(LlamaMLP):
    """transformers' layer, parameters and all, with the operator in its middle."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H]."""
        down: Tensor = self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))
        return down
