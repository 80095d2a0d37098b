"""The tanh form of GELU with its first two derivatives, by way of one sigmoid.

tanh(u) = 2 sigmoid(2u) - 1 turns x (1 + tanh(u)) / 2 into y = x s with s = sigmoid(A x + B x^3). From s the derivatives
are products, no second transcendental is needed, and nothing cancels for large negative x. With w = A + 3 B x^2 and
t = s (1 - s):

    y' = s + t x w                 y'' = t (w (4 + (1 - 2 s) x w) - 2 A)
"""

import torch
from torch import Tensor

A = 2 * (2 / torch.pi) ** 0.5
B = A * 0.044715


def gelu(x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y (written to `out` if given) and s."""
    s = sigmoid_of(x)
    return torch.mul(x, s, out=out), s


def sigmoid_of(x: Tensor) -> Tensor:
    """s."""
    return torch.sigmoid(x * _quadratic(x, B))


def gelu_slope(x: Tensor, s: Tensor) -> Tensor:
    """y', from s = gelu(x)[1]."""
    return torch.addcmul(s, torch.addcmul(s, s, s, value=-1), x * _quadratic(x, 3 * B))


def gelu_derivatives(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """y' and y''."""
    w, t = _quadratic(x, 3 * B), torch.addcmul(s, s, s, value=-1)
    v = x * w
    bracket = torch.addcmul(x.new_full((), -2 * A), w, torch.addcmul(v, v, s, value=-2).add_(4))
    return torch.addcmul(s, t, v), t.mul_(bracket)


def _quadratic(x: Tensor, b: float) -> Tensor:
    """A + b x^2."""
    return torch.addcmul(x.new_full((), A), x, x, value=b)
