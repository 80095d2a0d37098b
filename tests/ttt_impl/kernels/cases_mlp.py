"""As `cases.py`, for TTT-MLP."""

from typing import NamedTuple

import torch
from torch import Tensor

from ttt_impl.kernels.bounds import BOUNDS, error
from ttt_impl.kernels.operators_mlp import mlp_forward
from ttt_impl.learner import Inputs, Weights
from ttt_impl.reference import primal_mlp
from ttt_impl.state import unfold

OUT, NORMALISED, STATE, _ = BOUNDS["mlp"]


class Case(NamedTuple):
    """Arguments of the forward operator, in its order."""

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    tok: Tensor
    gamma: Tensor
    beta: Tensor
    start1: Tensor
    start2: Tensor

    def tokens(self, first: int, last: int | None = None) -> "Case":
        """The same heads reading only some tokens."""
        q, k, v = (x[:, first:last].contiguous() for x in self[:3])
        return Case(q, k, v, self.lr[:, :, first:last].contiguous(), *self[4:])

    def rows(self, index: list[int]) -> "Case":
        """Some rows of the batch."""
        starts = (w.unflatten(0, (len(self.q), -1))[index].flatten(0, 1) for w in self[7:])
        return Case(*(x[index] for x in self[:4]), *self[4:7], *starts)

    def heads(self, index: list[int]) -> "Case":
        """Some heads."""
        q, k, v = (x[:, :, index].contiguous() for x in self[:3])
        starts = (w.unflatten(0, (len(self.q), -1))[:, index].flatten(0, 1) for w in self[7:])
        return Case(q, k, v, self.lr[:, index].contiguous(), self.tok, self.gamma[index], self.beta[index], *starts)


def case(
    length: int, batch: int = 1, heads: int = 1, seed: int = 0, rate: float = 1.0, scale: float = 1.0
) -> Case:  # fmt: skip
    """Random inputs with gamma and beta far from 1 and 0; `scale` multiplies both layers."""
    g, width = torch.Generator().manual_seed(seed), 64

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    q, k, v = (normal(batch, length, heads, width).bfloat16() for _ in range(3))
    lr = torch.rand(batch, heads, length, generator=g) * rate / width
    tok = 1 / torch.arange(1, 17) + 0.02 * torch.rand(16, generator=g)
    gamma, beta = 1 + 0.2 * normal(heads, width), 0.2 * normal(heads, width)
    count = batch * heads
    start1, start2 = (0.1 * scale * normal(count, n + 1, m) for n, m in ((width, 4 * width), (4 * width, width)))
    return Case(q, k, v, lr, tok, gamma, beta, start1, start2)


def primal(x: Case) -> tuple[Tensor, Weights]:
    """Output [B, L, H, f], W1 and W2 with their biases after the last full mini-batch, in the dtype of `x`."""
    q, k, v = (t.transpose(1, 2) for t in x[:3])
    result = primal_mlp(Inputs(q, k, v, *x[3:7]), unfold(x[7:], len(q), True))
    w1, b1, w2, b2 = result.weights
    return result.output.transpose(1, 2), tuple(torch.cat(p, 2).flatten(0, 1) for p in ((w1, b1), (w2, b2)))


def double(x: Case) -> Case:
    return Case(*(t.double() for t in x))


class Result(NamedTuple):
    """What the forward operator returns."""

    out: Tensor
    end1: Tensor
    end2: Tensor
    keys: Tensor
    ghat1: Tensor
    ghat2: Tensor
    updates: Tensor
    saved_ghat2: Tensor
    checkpoints: Tensor


def forward(
    x: Case, keys: Tensor | None = None, ghat2: Tensor | None = None, segments: Tensor | None = None,
    mini_batches: int = 0, save: bool = False,
) -> Result:  # fmt: skip
    return Result(*mlp_forward(*x, keys, ghat2, segments, mini_batches, save))


def errors(x: Case, result: Result) -> dict[str, float]:
    """Relative errors over their bounds; weights that never learned have to be equal."""
    out, ends = primal(double(x))
    q = x.q.double()
    found = {"out": error(result.out, out) / OUT, "LN part": error(result.out.double() - q, out - q) / NORMALISED}
    for name, mine, end, start in zip("12", result[1:3], ends, x[7:], strict=True):
        found[f"W{name}"] = error(mine, end) / STATE
        if x.q.shape[1] >= 16:
            found[f"dW{name}"] = error(mine.double() - start.double(), end - start.double()) / STATE
    return found


def excess(x: Case, result: Result) -> float:
    """The worst error as a multiple of its bound."""
    return max(errors(x, result).values())


def same(a: Result, b: Result) -> bool:
    """Bit by bit."""
    return all(torch.equal(x, y) for x, y in zip(a[:6], b[:6], strict=True))
