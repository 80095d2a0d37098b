"""The dual form as a plain loop: readable, differentiable any number of times, and the oracle of the fast scans.

Per mini-batch, W at its start (paper, App. A; names in `prepared.py`):

    TTT-Linear   z = k W                  Ghat = lr * dloss/dz
                 z_bar = q W - scores Ghat                    W' = W - fast_step^T Ghat
    TTT-MLP      z1 = k W1, x2 = gelu(z1), z2 = x2 W2         Ghat2 = lr * dloss/dz2, Ghat1 = (Ghat2 W2^T) gelu'(z1)
                 z1_bar = q W1 - scores Ghat1, y2 = gelu(z1_bar)
                 z_bar  = y2 W2 - tok * tril(y2 x2^T) Ghat2
                 W1' = W1 - fast_step^T Ghat1                 W2' = W2 - last x2^T Ghat2
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ttt_impl.gelu import gelu, gelu_slope
from ttt_impl.learner import EPSILON, Weights
from ttt_impl.prepared import Prepared
from ttt_impl.state import Rows


class Resets(NamedTuple):
    """Where heads start afresh inside a group of mini-batches."""

    where: dict[int, Tensor]
    """Mini-batch -> heads [N, 1, 1]."""
    fresh: Weights
    """What they start from."""


NO_RESETS = Resets({}, ())


class Scan(NamedTuple):
    """z_bar [M, N, K, f], the weights at the end, and the gradient rows of every mini-batch."""

    z_bar: Tensor
    weights: Weights
    rows: Rows
    """TTT-Linear: (Ghat,) [M, N, K, f]. TTT-MLP: (Ghat1 [M, N, K, 4f], Ghat2 [M, N, K, f])."""


def scan_linear(p: Prepared, start: Weights, norm: bool, resets: Resets, pending: Rows | None) -> Scan:
    """TTT-Linear; `start` = (W [N, f1, f],), `pending` the Ghat rows that the first mini-batch already holds."""
    (w,), z_bars, rows = start, [], []
    for m in range(len(p.q)):
        if m in resets.where:
            w = torch.where(resets.where[m], resets.fresh[0], w)
        ghat = rate_weighted_gradient(p.k[m] @ w, p, m, norm)
        if m == 0 and pending is not None:
            ghat = ghat + pending[0]
        z_bars.append(p.q[m] @ w - p.scores[m] @ ghat)
        w = w - p.fast_step[m].mT @ ghat
        rows.append(ghat)
    return Scan(torch.stack(z_bars), (w,), (torch.stack(rows),))


def scan_mlp(p: Prepared, start: Weights, norm: bool, resets: Resets, pending: Rows | None) -> Scan:
    """TTT-MLP; `start` = (W1 [N, f1, 4f], W2 [N, 4f + 1, f])."""
    (w1, w2), z_bars, rows = start, [], []
    bias = w2.shape[1] - w1.shape[2]
    for m in range(len(p.q)):
        if m in resets.where:
            w1, w2 = (torch.where(resets.where[m], new, w) for new, w in zip(resets.fresh, (w1, w2), strict=True))
        z1 = p.k[m] @ w1
        x2, s = gelu(z1)
        slope = gelu_slope(z1, s)
        x2 = F.pad(x2, (0, bias), value=1.0)
        ghat2 = rate_weighted_gradient(x2 @ w2, p, m, norm)
        ghat1 = (ghat2 @ w2[:, : w1.shape[2]].mT) * slope
        if m == 0 and pending is not None:
            ghat1, ghat2 = ghat1 + pending[0], ghat2 + pending[1]
        y2 = F.pad(gelu(p.q[m] @ w1 - p.scores[m] @ ghat1)[0], (0, bias), value=1.0)
        z_bars.append(y2 @ w2 - (p.causal * (y2 @ x2.mT)) @ ghat2)
        rows.append((ghat1, ghat2))
        w1, w2 = w1 - p.fast_step[m].mT @ ghat1, w2 - x2.mT @ (p.last[m] * ghat2)
    return Scan(torch.stack(z_bars), (w1, w2), tuple(torch.stack(r) for r in zip(*rows, strict=True)))


def rate_weighted_gradient(z: Tensor, p: Prepared, m: int, norm: bool) -> Tensor:
    """Ghat = lr * dloss/dz of mini-batch m, [N, K, f]; the formula of `inner_step.py` in plain operations."""
    if not norm:
        return torch.addcmul(p.offset[m], p.slope[m], z)
    rstd = (z.var(-1, unbiased=False, keepdim=True) + EPSILON).rsqrt()
    x = (z - z.mean(-1, keepdim=True)) * rstd
    a = torch.addcmul(p.offset[m], p.slope[m], x)
    return rstd * (a - a.mean(-1, keepdim=True) - x * (a * x).mean(-1, keepdim=True))
