"""What bf16 operands alone cost: the dual form in float64 with both operands of every product rounded.

Forward and backward round alike, as a kernel on tensor cores has to, and nothing else is inexact. An error of a kernel
that is no larger than a small multiple of this one is the price of the format and no fault.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.ttt_impl.kernels.cases import Case
from ttt_impl.learner import PUBLISHED


class _Product(torch.autograd.Function):
    """a @ b of rounded operands, [..., n, m] by [..., m, p]."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        a, b = rounded(a), rounded(b)
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (a, b), g = ctx.saved_tensors, rounded(gradients[0])
        return g @ b.mT, a.mT @ g


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


def product(a: Tensor, b: Tensor) -> Tensor:
    result: Tensor = _Product.apply(a, b)
    return result


Product = Callable[[Tensor, Tensor], Tensor]


def dual(x: Case, product: Product = product) -> tuple[Tensor, Tensor]:
    """As `cases.primal`, for float64 inputs."""
    batch, length, heads, width = x.q.shape
    q, k, v = (t.transpose(1, 2) for t in x[:3])
    start = x.start.view(batch, heads, width + 1, width)
    w, b, outputs = start[:, :, :width], start[:, :, width:], []
    gamma, beta = x.gamma[:, None], x.beta[:, None]
    causal = torch.ones(16, 16, dtype=torch.float64).tril()
    for t in range(0, length, 16):
        queries, keys, values = (y[:, :, t : t + 16] for y in (q, k, v))
        gradient = PUBLISHED.gradient(product(keys, w) + b, values - keys, gamma, beta)
        ghat = x.lr[:, :, t : t + 16, None] * gradient
        n = keys.shape[2]
        scores = x.tok[:n, None] * causal[:n, :n] * (product(queries, keys.mT) + 1)
        zbar = product(queries, w) + b - product(scores, ghat)
        outputs.append(PUBLISHED.output(queries, zbar, gamma, beta))
        step = x.tok[-1] * (n == 16) * ghat
        w, b = w - product(keys.mT, step), b - step.sum(2, keepdim=True)
    return torch.cat(outputs, 2).transpose(1, 2), torch.cat([w, b], 2).flatten(0, 1)
