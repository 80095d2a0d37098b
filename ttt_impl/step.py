"""A few tokens inside the open mini-batch: the decoding step, which reads the weights once and writes them seldom.

With the rows of the tokens already in the mini-batch at hand (`state.py`), token i of the mini-batch answers

    z_bar = q W - tok[i] * sum_(j <= i) (q . k_j) Ghat_j          (k and q widened by the column of ones)

and only the token that fills the mini-batch folds the rows into W. Rows are written in place, weights never. Rows of
the batch may stand at different places; rows not yet taken hold Ghat = 0 and need no mask.
"""

import torch
from torch import Tensor

from ttt_impl.gelu import gelu, gelu_slope
from ttt_impl.layout import Layout
from ttt_impl.learner import Inputs, Learner, Weights
from ttt_impl.state import FastWeights


class _Chunk:
    """The chunk [B, H, n, f] as heads [N, n, f1], the scores' rates, and where its rows go."""

    def __init__(self, inputs: Inputs, learner: Learner, layout: Layout) -> None:
        q, k, v, lr, tok, gamma, beta = inputs
        batch, heads = q.shape[:2]
        self.q, self.target = q.flatten(0, 1), learner.target(k, v).flatten(0, 1)
        self.rate = lr.flatten(0, 1)[..., None]
        self.gamma, self.beta = (x.repeat(batch, 1)[:, None] for x in (gamma, beta))
        self.wide_q, self.wide_k = (_widen(x.flatten(0, 1), learner.bias) for x in (q, k))
        places = layout.places(q.device)
        causal = tok[:, None] * torch.ones_like(tok).expand(len(tok), -1).tril()
        self.causal = causal[places].expand(batch, -1, -1).repeat_interleave(heads, 0)
        self.where = places.expand(batch, -1).repeat_interleave(heads, 0)[..., None]
        self.closing = closing_heads(layout, heads, q.device)
        self.last = tok[-1]

    def put(self, buffer: Tensor, rows: Tensor) -> None:
        """Write the chunk's rows [N, n, g] at their places of `buffer` [N, K, g]."""
        buffer.scatter_(1, self.where.expand_as(rows), rows)


def step_linear(inputs: Inputs, learner: Learner, layout: Layout, state: FastWeights) -> tuple[Tensor, FastWeights]:
    """Output [B, H, n, f] and the state after it."""
    chunk, (w,), (keys, ghat) = _Chunk(inputs, learner, layout), state.weights, state.rows
    z, z_bar = torch.bmm(torch.cat([chunk.wide_k, chunk.wide_q], 1), w).chunk(2, 1)
    chunk.put(keys, chunk.wide_k)
    chunk.put(ghat, chunk.rate * learner.gradient(z, chunk.target, chunk.gamma, chunk.beta))
    z_bar = torch.baddbmm(z_bar, chunk.causal * (chunk.wide_q @ keys.mT), ghat, alpha=-1)
    if chunk.closing is not None:
        w = torch.baddbmm(w, (chunk.last * chunk.closing * keys).mT, ghat, alpha=-1)
        state = opened((w,), chunk.closing, state)
    return learner.output(chunk.q, z_bar, chunk.gamma, chunk.beta).view_as(inputs.q), state


def step_mlp(inputs: Inputs, learner: Learner, layout: Layout, state: FastWeights) -> tuple[Tensor, FastWeights]:
    """Output [B, H, n, f] and the state after it."""
    chunk, (w1, w2), (keys, ghat1, ghat2, x2) = _Chunk(inputs, learner, layout), state.weights, state.rows
    z1, z1_bar = torch.bmm(torch.cat([chunk.wide_k, chunk.wide_q], 1), w1).chunk(2, 1)
    hidden, s = gelu(z1)
    new_x2 = _widen(hidden, learner.bias)
    gradient = chunk.rate * learner.gradient(new_x2 @ w2, chunk.target, chunk.gamma, chunk.beta)
    chunk.put(keys, chunk.wide_k)
    chunk.put(ghat1, (gradient @ w2[:, : z1.shape[-1]].mT) * gelu_slope(z1, s))
    chunk.put(ghat2, gradient)
    chunk.put(x2, new_x2)
    z1_bar = torch.baddbmm(z1_bar, chunk.causal * (chunk.wide_q @ keys.mT), ghat1, alpha=-1)
    y2 = _widen(gelu(z1_bar)[0], learner.bias)
    z_bar = torch.baddbmm(y2 @ w2, chunk.causal * (y2 @ x2.mT), ghat2, alpha=-1)
    if chunk.closing is not None:
        rate = chunk.last * chunk.closing
        w1 = torch.baddbmm(w1, (rate * keys).mT, ghat1, alpha=-1)
        w2 = torch.baddbmm(w2, (rate * x2).mT, ghat2, alpha=-1)
        state = opened((w1, w2), chunk.closing, state)
    return learner.output(chunk.q, z_bar, chunk.gamma, chunk.beta).view_as(inputs.q), state


def _widen(x: Tensor, bias: bool) -> Tensor:
    """A column of ones on the right, if there are biases."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1) if bias else x


def closing_heads(layout: Layout, heads: int, device: torch.device) -> Tensor | None:
    """Heads [1 or N, 1, 1] whose mini-batch the chunk fills; None if it is known that there are none."""
    if layout.taken is not None and not layout.fill:
        return (layout.taken + layout.length == layout.size).repeat_interleave(heads)[:, None, None]
    fill = layout.fill or (0,)
    full = [f + layout.length == layout.size for f in fill]
    if not any(full):
        return None
    closing = torch.tensor(full, device=device)[:, None, None]
    return closing.repeat_interleave(heads, 0) if len(full) > 1 else closing


def opened(weights: Weights, closing: Tensor, state: FastWeights) -> FastWeights:
    """The next mini-batch: new weights, and no rows where the last one closed; `state` stays as it is."""
    return FastWeights(weights, tuple(x.masked_fill(closing, 0) for x in state.rows))
