"""The learner f that every head trains while it reads: what it computes and what its loss looks like.

    f(x; W) = [x +] [LN](f_res(x; W))        f_res(x) = x W + b            TTT-Linear
                                             f_res(x) = gelu(x W1 + b1) W2 + b2   TTT-MLP
    loss(W; k, v) = 1/2 || f(k; W) - v ||^2                               (paper, Eq. 4; Sec. 2.7 for LN and residual)

The brackets are the rows of the paper's ablation, the published layer has both. LN has one weight and bias per head,
shared by the loss and the output, and is not trained by the inner loop. Because x is added on the outside, the
gradient only ever needs z = f_res(k) and the target t = v - [k]: loss = 1/2 || [LN](z) - t ||^2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-6
Weights = tuple[Tensor, ...]


class Inputs(NamedTuple):
    """What the inner loop reads, for L tokens of B sequences and H heads of width f, mini-batches of K tokens.

    The learning rate of token j, as it counts in the output of token i of the same mini-batch, is tok[i] * lr[j].
    """

    q: Tensor
    """Test view [B, H, L, f]."""
    k: Tensor
    """Training view [B, H, L, f]."""
    v: Tensor
    """Label view [B, H, L, f]."""
    lr: Tensor
    """Rate of each token's gradient [B, H, L]."""
    tok: Tensor
    """Rate of each place in the mini-batch [K]."""
    gamma: Tensor
    """Weight of the inner LN [H, f]."""
    beta: Tensor
    """Bias of the inner LN [H, f]."""

    def each(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        """Apply `function` to what differs from token to token: q, k, v and lr."""
        q, k, v, lr = map(function, self[:4])
        return self._replace(q=q, k=k, v=v, lr=lr)


@dataclass(frozen=True)
class Learner:
    """Which ingredients f has; the defaults are the published ones."""

    norm: bool = True
    residual: bool = True
    bias: bool = True

    def target(self, k: Tensor, v: Tensor) -> Tensor:
        """What [LN](z) has to meet, [..., f]."""
        return v - k if self.residual else v

    def normalised(self, z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """[LN](z), the learner's answer without the residual; z [..., f], gamma and beta broadcast to it."""
        if not self.norm:
            return z
        return torch.addcmul(beta, gamma, F.layer_norm(z, z.shape[-1:], eps=EPSILON))

    def output(self, q: Tensor, z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """f(q) from z = f_res(q)."""
        answer = self.normalised(z, gamma, beta)
        return q + answer if self.residual else answer

    def loss(self, z: Tensor, target: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """1/2 || [LN](z) - t ||^2 over the last dimension."""
        return 0.5 * (self.normalised(z, gamma, beta) - target).square().sum(-1)

    def gradient(self, z: Tensor, target: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Derivative of `loss` with respect to z, written out.

        With x = (z - mean z) / s, s = sqrt(var z + eps) and a = gamma (gamma x + beta - t):
        dloss/dz = (a - mean a - x mean(a x)) / s.
        """
        if not self.norm:
            return z - target
        x, s = standardise(z)
        a = gamma * (gamma * x + beta - target)
        return (a - a.mean(-1, keepdim=True) - x * (a * x).mean(-1, keepdim=True)) / s


PUBLISHED = Learner()


def standardise(z: Tensor) -> tuple[Tensor, Tensor]:
    """Zero mean and unit variance over the last dimension, and the standard deviation that was divided out."""
    s = (z.var(-1, unbiased=False, keepdim=True) + EPSILON).sqrt()
    return (z - z.mean(-1, keepdim=True)) / s, s
