"""Mamba's short depthwise convolution in plain PyTorch, without a copy into the layout that `conv1d` wants.

Each channel mixes its own last K values: y_t = bias + sum_k weight_k x_{t - K + 1 + k}. With channels as the last axis
each term is one fused multiply-add over long stretches of memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve `x` [B, K - 1 + L, D], whose first K - 1 tokens are the past, to [B, L, D].

    `weight` is [D, 1, K] as in a depthwise `Conv1d`, `bias` [D].
    """
    return _CausalConv.apply(x, weight.squeeze(1).t().contiguous(), bias)


class _CausalConv(torch.autograd.Function):
    """x [B, K - 1 + L, D], weight [K, D], bias [D] -> y [B, L, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        length = x.shape[1] - len(weight) + 1
        y = torch.addcmul(bias, x[:, :length], weight[0])
        for k in range(1, len(weight)):
            y.addcmul_(x[:, k : k + length], weight[k])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        length = grad_y.shape[1]
        grad_x, grad_weight, product = torch.zeros_like(x), torch.empty_like(weight), torch.empty_like(grad_y)
        for k in range(len(weight)):
            grad_x[:, k : k + length].addcmul_(grad_y, weight[k])
            grad_weight[k] = torch.mul(grad_y, x[:, k : k + length], out=product).sum((0, 1))
        return grad_x, grad_weight, grad_y.sum((0, 1))
