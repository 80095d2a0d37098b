"""The tanh form of GELU with its first two derivatives, by way of one sigmoid.

tanh(u) = 2 sigmoid(2u) - 1 turns x (1 + tanh(u)) / 2 into y = x s with s = sigmoid(A x + B x^3). From s the derivatives
are products, no second transcendental is needed, and nothing cancels for large negative x. With w = A + 3 B x^2:

    y' = s + y (1 - s) w                 y'' = s (1 - s) (w (4 + (1 - 2 s) x w) - 2 A)
"""

import torch
from torch import Tensor

A = 2 * (2 / torch.pi) ** 0.5
B = A * 0.044715


def gelu(x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y (written to `out` if given) and s."""
    s = torch.sigmoid(x * _quadratic(x, B))
    return torch.mul(x, s, out=out), s


def gelu_slope(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
    """y', from y, s = gelu(x)."""
    return torch.addcmul(s, torch.addcmul(y, y, s, value=-1), _quadratic(x, 3 * B))


def gelu_curvature(x: Tensor, s: Tensor) -> Tensor:
    """y''."""
    w = _quadratic(x, 3 * B)
    v = x * w
    bracket = torch.addcmul(x.new_full((), -2 * A), w, torch.addcmul(v, v, s, value=-2).add_(4))
    return torch.addcmul(s, s, s, value=-1).mul_(bracket)


def _quadratic(x: Tensor, b: float) -> Tensor:
    """A + b x^2."""
    return torch.addcmul(x.new_full((), A), x, x, value=b)
