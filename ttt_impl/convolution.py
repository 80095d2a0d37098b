"""Causal depthwise convolution over time, as the Mamba backbone uses it, that can go on where it stopped.

With four taps a channel, four shifted products in the layout [B, L, C] of the rest of the model are several times
faster on a CPU than PyTorch's general convolution and its transposes, backward included.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ttt_impl.cpu.convolve import convolve
from ttt_impl.cpu.pointwise import usable


def depthwise_conv(width: int, kernel: int) -> nn.Conv1d:
    """The official module: weight [C, 1, kernel], bias [C]; its own forward is not used."""
    return nn.Conv1d(width, width, kernel_size=kernel, groups=width, bias=True)


def causal_conv(conv: nn.Conv1d, x: Tensor, past: Tensor | None = None, age: Tensor | None = None) -> Tensor:
    """y_t = bias + sum_j weight_j x_(t-j), for x [B, L, C] after the inputs `past` [B, kernel - 1, C] (None: zeros).

    `age` [B, L] counts the tokens before each one in its own document: nothing older is read.
    """
    if usable(x, past, conv.weight):
        assert conv.bias is not None
        return convolve(x, past, conv.weight, conv.bias, age)
    before = conv.weight.shape[-1] - 1
    x = F.pad(x, (0, 0, before, 0)) if past is None else torch.cat([past, x], 1)
    seen = None if age is None else age[None] >= torch.arange(before, -1, -1, device=x.device)[:, None, None]
    y: Tensor = _Taps.apply(x, conv.weight[:, 0].T.contiguous(), conv.bias, seen)
    return y


class _Taps(torch.autograd.Function):
    """(x [B, L + k - 1, C], taps [k, C], bias [C], seen [k, B, L] or None) -> [B, L, C]; tap j reads x from j on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor, seen: Tensor | None) -> Tensor:
        length = x.shape[1] - len(taps) + 1
        y = bias.expand(len(x), length, -1).clone()
        for j, tap in enumerate(taps):
            y.addcmul_(_visible(x[:, j : j + length], seen, j), tap)
        ctx.save_for_backward(x, taps, seen)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, seen = ctx.saved_tensors
        length, dx, dtaps = dy.shape[1], torch.zeros_like(x), torch.empty_like(taps)
        for j, tap in enumerate(taps):
            dy_seen = _visible(dy, seen, j)
            dx[:, j : j + length].addcmul_(dy_seen, tap)
            torch.sum(x[:, j : j + length] * dy_seen, (0, 1), out=dtaps[j])
        return dx, dtaps, dy.sum((0, 1)), None


def _visible(x: Tensor, seen: Tensor | None, j: int) -> Tensor:
    return x if seen is None else x * seen[j, ..., None]
