"""What a TTT layer remembers between calls.

The official cache keeps the weights at the mini-batch's start and a dense sum of gradients of the same size, both read
and the sum written at every token. But a mini-batch that is still open has seen at most K - 1 tokens, and each added a
rank-one gradient: keeping those rows (2 f numbers a token for TTT-Linear, 10 f for TTT-MLP) is exact and far smaller.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ttt_impl.gelu import gelu
from ttt_impl.learner import Weights

Rows = tuple[Tensor, ...]


class FastWeights(NamedTuple):
    """What a layer remembers: weights at the start of the open mini-batch, and the rows that it has gathered so far.

    N = B * H, f1 = f + 1 when there are biases (the bias is the last row of its weight).
    """

    weights: Weights
    """(W [N, f1, f],) or (W1 [N, f1, 4f], W2 [N, 4f + 1, f])."""
    rows: Rows
    """Keys, then gradients, then TTT-MLP's hidden layer: (k [N, K, f1], Ghat [N, K, f]) or
    (k, Ghat1 [N, K, 4f], Ghat2 [N, K, f], x2 [N, K, 4f + 1]). The gradients of slots not taken are zero."""

    @property
    def gradients(self) -> Rows:
        """(Ghat,) or (Ghat1, Ghat2)."""
        return self.rows[1 : 1 + len(self.weights)]

    def each(self, function: Callable[[Tensor], Tensor]) -> "FastWeights":
        """Apply `function` to every tensor."""
        return FastWeights(tuple(map(function, self.weights)), tuple(map(function, self.rows)))

    def first_rows(self, count: int) -> "FastWeights":
        """The same mini-batch when it held only `count` rows."""
        return self._replace(
            rows=tuple(torch.cat([x[:, :count], torch.zeros_like(x[:, count:])], 1) for x in self.rows)
        )


def with_hidden(weights: Weights, rows: Rows) -> FastWeights:
    """FastWeights from keys and gradients: the hidden layer of TTT-MLP follows from the keys."""
    if len(weights) == 1:
        return FastWeights(weights, rows)
    x2 = gelu(rows[0] @ weights[0])[0]
    if weights[1].shape[1] > x2.shape[-1]:
        x2 = torch.cat([x2, x2.new_ones(*x2.shape[:-1], 1)], -1)
    return FastWeights(weights, (*rows, x2))


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
