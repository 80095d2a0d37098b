"""What a TTT layer remembers between calls.

The official cache keeps the weights at the mini-batch's start and a dense sum of gradients of the same size, both read
and the sum written at every token. But a mini-batch that is still open has seen at most K - 1 tokens, and each added a
rank-one gradient: keeping those rows (2 f numbers a token for TTT-Linear, 10 f for TTT-MLP) is exact and far smaller.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ttt_impl.learner import Weights

Rows = tuple[Tensor, ...]


class FastWeights(NamedTuple):
    """What a layer remembers: weights at the start of the open mini-batch, and the rows that it has gathered so far.

    N = B * H, f1 = f + 1 when there are biases (the bias is the last row of its weight).
    """

    weights: Weights
    """(W [N, f1, f],) or (W1 [N, f1, 4f], W2 [N, 4f + 1, f])."""
    keys: Tensor
    """[N, K, f1]."""
    rows: Rows
    """(Ghat [N, K, f],) or (Ghat1 [N, K, 4f], x2 [N, K, 4f + 1], Ghat2 [N, K, f]); Ghat is zero in slots not taken."""

    def first_rows(self, count: int) -> "FastWeights":
        """The same mini-batch when it held only `count` rows."""
        keys, *rows = (torch.cat([x[:, :count], torch.zeros_like(x[:, count:])], 1) for x in (self.keys, *self.rows))
        return FastWeights(self.weights, keys, tuple(rows))


def fold(weights: Weights, batch: int, bias: bool) -> Weights:
    """Official (W [H, f, g], b [H, 1, g], ...) -> one (W [B * H, f + 1, g], ...) a layer, b the last row of W."""
    pairs = zip(weights[::2], weights[1::2], strict=True)
    joined = [torch.cat([w, b], 1) if bias else w for w, b in pairs]
    return tuple(w.expand(batch, *w.shape).flatten(0, 1) for w in joined)


def unfold(weights: Weights, batch: int, bias: bool) -> Weights:
    """Inverse of `fold` for the weights of each sequence: (W [B, H, f, g], b [B, H, 1, g], ...)."""
    result: list[Tensor] = []
    for w in weights:
        w = w.unflatten(0, (batch, -1))
        result += [w[:, :, :-1], w[:, :, -1:]] if bias else [w, torch.zeros_like(w[:, :, :1])]
    return tuple(result)


def pending_gradients(rows: Rows) -> Rows:
    """Of the rows of an open mini-batch, those the scan cannot recompute: the Ghat, without TTT-MLP's x2."""
    return rows[::2]
