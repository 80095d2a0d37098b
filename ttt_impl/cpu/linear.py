"""x W^T of many rows without gradients: oneDNN's operator, on a CPU about a tenth faster than what PyTorch calls.

In training it does not pay: the gradients' products are PyTorch's again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

FEWEST = 256
"""Rows from which on it pays."""
OPERATOR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] -> [..., out]."""
    if (
        OPERATOR is None or torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu"
        or not (x.dtype == weight.dtype == torch.float32) or torch.is_autocast_enabled("cpu")
        or x.numel() < FEWEST * x.shape[-1]
    ):  # fmt: skip
        return F.linear(x, weight, bias)
    y: Tensor = OPERATOR(x, weight, bias, "none", [], "")
    return y


class Linear(nn.Linear):
    """PyTorch's layer by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias)


def use(model: nn.Module) -> None:
    """Let every linear layer of `model` go through `linear`; its parameters stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


if OPERATOR is not None:

    @register_flop_formula(OPERATOR)
    def _flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
        """2 a weight and row."""
        return 2 * x.numel() * weight[0]
