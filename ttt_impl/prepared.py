"""Everything about a mini-batch that does not depend on the fast weights, computed for all mini-batches at once.

The scan over mini-batches is a chain of small products, so what can leave the chain should. Three rewritings make the
dual form (paper, Sec. 2.5, App. A) short:

* The rate of token j in the output of token i is tok[i] * lr[j]. The factor lr goes into the gradient, Ghat = lr * G,
  once; the factor tok goes into the scores. Their product, a K x K matrix a mini-batch, is never formed.
* A bias is a weight whose input is always 1: with a column of ones beside q and k, b is one more row of W, the score
  of that column gives the "+ 1" of tril(eta) G, and no formula mentions the bias again.
* The update of the weights carries tok[K - 1], so it multiplies the keys beforehand.

Per head and mini-batch, with q and k widened by the column of ones:

    scores = tok * tril(q k^T)      fast_step = tok[K - 1] * k
    z_bar  = q W - scores Ghat      W' = W - fast_step^T Ghat
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ttt_impl.learner import Inputs, Learner


class Prepared(NamedTuple):
    """Mini-batches first: M mini-batches, N = B * H heads, K tokens, width f, f1 = f + 1 with the column of ones."""

    q: Tensor
    """[M, N, K, f1]."""
    k: Tensor
    """[M, N, K, f1]."""
    fast_step: Tensor
    """[M, N, K, f1]."""
    scores: Tensor
    """[M, N, K, K]."""
    slope: Tensor
    """[M, N, K, f]."""
    offset: Tensor
    """[M, N, K, f]."""
    causal: Tensor
    """tok * tril(1), [K, K]."""
    last: Tensor
    """tok[K - 1], or 0 where the mini-batch stays open, [M, N, 1, 1]."""


def prepare(inputs: Inputs, learner: Learner, close: Tensor | None = None) -> Prepared:
    """Inputs cut into mini-batches (q [M, N, K, f], lr [M, N, K]) -> Prepared; close [M, N] says which are complete."""
    q, k, v, lr, tok, gamma, beta = inputs
    repeats = q.shape[1] // gamma.shape[0]
    gamma, beta, rate = gamma.repeat(repeats, 1)[:, None], beta.repeat(repeats, 1)[:, None], lr[..., None]
    target = learner.target(k, v)
    if learner.norm:
        slope, offset = rate * gamma.square(), (rate * gamma) * (beta - target)
    else:
        slope, offset = rate.expand_as(target), -rate * target
    if learner.bias:
        ones = q.new_ones(()).expand(*q.shape[:-1], 1)
        q, k = torch.cat([q, ones], -1), torch.cat([k, ones], -1)
    causal = tok[:, None] * torch.ones_like(tok).expand(len(tok), -1).tril()
    last = tok[-1].expand(*q.shape[:2], 1, 1)
    if close is not None:
        last = last * close[..., None, None]
    return Prepared(q, k, last * k, causal * (q @ k.mT), slope, offset, causal, last)
