"""Inputs for the kernels, what the float64 primal form makes of them, and the bounds of the comparison."""

from typing import NamedTuple

import torch
from torch import Tensor

from ttt_impl.kernels.operators import linear_forward
from ttt_impl.learner import Inputs
from ttt_impl.reference import primal_linear

OUT, NORMALISED, STATE = 5e-3, 4e-3, 3e-3
"""Relative errors allowed to bf16 tokens with a float32 state: output, its LN part, W and what W has learned."""


class Case(NamedTuple):
    """Arguments of the forward operator, in its order."""

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    tok: Tensor
    gamma: Tensor
    beta: Tensor
    start: Tensor

    def tokens(self, first: int, last: int | None = None) -> "Case":
        """The same heads reading only some tokens."""
        q, k, v = (x[:, first:last].contiguous() for x in self[:3])
        return Case(q, k, v, self.lr[:, :, first:last].contiguous(), *self[4:])

    def rows(self, index: list[int]) -> "Case":
        """Some rows of the batch."""
        start = self.start.unflatten(0, (len(self.q), -1))[index].flatten(0, 1)
        return Case(*(x[index] for x in self[:4]), *self[4:7], start)

    def heads(self, index: list[int]) -> "Case":
        """Some heads."""
        q, k, v = (x[:, :, index].contiguous() for x in self[:3])
        start = self.start.unflatten(0, (len(self.q), -1))[:, index].flatten(0, 1)
        return Case(q, k, v, self.lr[:, index].contiguous(), self.tok, self.gamma[index], self.beta[index], start)


def case(
    length: int, batch: int = 1, heads: int = 1, width: int = 64, seed: int = 0, rate: float = 1.0, scale: float = 0.02
) -> Case:
    """Random inputs with gamma and beta far from 1 and 0, or means over them would go unnoticed."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    q, k, v = (normal(batch, length, heads, width).bfloat16() for _ in range(3))
    lr = torch.rand(batch, heads, length, generator=g) * rate / width
    tok = 1 / torch.arange(1, 17) + 0.02 * torch.rand(16, generator=g)
    start = scale * normal(batch * heads, width + 1, width)
    return Case(q, k, v, lr, tok, 1 + 0.2 * normal(heads, width), 0.2 * normal(heads, width), start)


def primal(x: Case) -> tuple[Tensor, Tensor]:
    """Output [B, L, H, f] and W [B * H, f + 1, f] after the last full mini-batch, in the dtype of `x`."""
    batch, _, heads, width = x.q.shape
    q, k, v = (t.transpose(1, 2) for t in x[:3])
    start = x.start.view(batch, heads, width + 1, width)
    result = primal_linear(Inputs(q, k, v, *x[3:7]), (start[:, :, :width], start[:, :, width:]))
    return result.output.transpose(1, 2), torch.cat(result.weights, 2).flatten(0, 1)


def double(x: Case) -> Case:
    return Case(*(t.double() for t in x))


class Result(NamedTuple):
    """What the forward operator returns."""

    out: Tensor
    end: Tensor
    keys: Tensor
    ghat: Tensor
    updates: Tensor
    checkpoints: Tensor


def forward(
    x: Case, keys: Tensor | None = None, ghat: Tensor | None = None, segments: Tensor | None = None,
    mini_batches: int = 0, save: bool = False,
) -> Result:  # fmt: skip
    return Result(*linear_forward(*x, keys, ghat, segments, mini_batches, save))


def error(mine: Tensor, reference: Tensor) -> float:
    """Relative error in the Frobenius norm; infinite where something is not a number."""
    e = ((mine.double() - reference).norm() / reference.norm()).item()
    return e if e == e else float("inf")


def excess(x: Case, result: Result) -> float:
    """The worst error as a multiple of its bound; a state that never learned has to be equal."""
    out, end = primal(double(x))
    q, start = x.q.double(), x.start.double()
    ratios = [error(result.out, out) / OUT, error(result.out.double() - q, out - q) / NORMALISED]
    ratios.append(error(result.end, end) / STATE)
    if x.q.shape[1] >= 16:
        ratios.append(error(result.end.double() - start, end - start) / STATE)
    return max(ratios)


def same(a: Result, b: Result) -> bool:
    """Bit by bit."""
    return all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
