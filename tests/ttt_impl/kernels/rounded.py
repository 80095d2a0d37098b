"""What bf16 operands alone cost: the dual form in float64 with both operands of every product rounded.

Forward and backward round alike, as a kernel on tensor cores has to, and nothing else is inexact. An error of a kernel
that is no larger than a small multiple of this one is the price of the format and no fault.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ttt_impl.kernels import cases_mlp
from tests.ttt_impl.kernels.cases import Case
from ttt_impl.learner import PUBLISHED, Weights
from ttt_impl.reference import gelu_slope


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


def dual_mlp(x: cases_mlp.Case, product: Product = product) -> tuple[Tensor, Weights]:
    """As `cases_mlp.primal`, for float64 inputs."""
    batch, length, heads, _ = x.q.shape
    q, k, v = (t.transpose(1, 2) for t in x[:3])
    (w1, b1), (w2, b2) = ((s[:, :, :-1], s[:, :, -1:]) for s in (t.unflatten(0, (batch, heads)) for t in x[7:]))
    gamma, beta, outputs = x.gamma[:, None], x.beta[:, None], []
    causal = torch.ones(16, 16, dtype=torch.float64).tril()
    for t in range(0, length, 16):
        queries, keys, values = (y[:, :, t : t + 16] for y in (q, k, v))
        n = keys.shape[2]
        rates = x.tok[:n, None] * causal[:n, :n]
        z1 = product(keys, w1) + b1
        x2 = F.gelu(z1, approximate="tanh")
        gradient = PUBLISHED.gradient(product(x2, w2) + b2, values - keys, gamma, beta)
        ghat2 = x.lr[:, :, t : t + 16, None] * gradient
        ghat1 = product(ghat2, w2.mT) * gelu_slope(z1)
        z1bar = product(queries, w1) + b1 - product(rates * (product(queries, keys.mT) + 1), ghat1)
        x2bar = F.gelu(z1bar, approximate="tanh")
        z2bar = product(x2bar, w2) + b2 - product(rates * (product(x2bar, x2.mT) + 1), ghat2)
        outputs.append(PUBLISHED.output(queries, z2bar, gamma, beta))
        last = x.tok[-1] * (n == 16)
        w1, b1 = w1 - product(keys.mT, last * ghat1), b1 - (last * ghat1).sum(2, keepdim=True)
        w2, b2 = w2 - product(x2.mT, last * ghat2), b2 - (last * ghat2).sum(2, keepdim=True)
    ends = tuple(torch.cat(pair, 2).flatten(0, 1) for pair in ((w1, b1), (w2, b2)))
    return torch.cat(outputs, 2).transpose(1, 2), ends
