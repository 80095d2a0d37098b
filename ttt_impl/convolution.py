"""Causal depthwise convolution over time, as the Mamba backbone uses it, that can go on where it stopped."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def depthwise_conv(width: int, kernel: int) -> nn.Conv1d:
    """The official module: weight [C, 1, kernel], bias [C]; its own forward is not used."""
    return nn.Conv1d(width, width, kernel_size=kernel, groups=width, bias=True)


def causal_conv(conv: nn.Conv1d, x: Tensor, past: Tensor | None = None, age: Tensor | None = None) -> Tensor:
    """y_t = bias + sum_j weight_j x_(t-j), for x [B, L, C] after the inputs `past` [B, kernel - 1, C] (None: zeros).

    `age` [B, L] counts the tokens before each one in its own document: nothing older is read.
    """
    x = extend(conv, x, past)
    if age is None:
        return F.conv1d(x.mT, conv.weight, conv.bias, groups=conv.groups).mT
    length, kernel = age.shape[1], conv.weight.shape[-1]
    y = x.new_zeros(()) if conv.bias is None else conv.bias
    for delay in range(kernel):
        tap = x[:, kernel - 1 - delay :][:, :length]
        y = torch.addcmul(y, tap * (age >= delay)[..., None], conv.weight[:, 0, kernel - 1 - delay])
    return y


def extend(conv: nn.Conv1d, x: Tensor, past: Tensor | None) -> Tensor:
    """Put the kernel - 1 inputs before the chunk in front of it."""
    before = conv.weight.shape[-1] - 1
    return F.pad(x, (0, 0, before, 0)) if past is None else torch.cat([past, x], 1)
