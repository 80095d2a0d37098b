"""The way through a sequence, group of mini-batches by group of mini-batches.

A group bounds memory. In training, what the backward of a group needs is recomputed from the group's inputs and first
W, so that only M / group states and one group's intermediate results exist at a time: this is what lets a 125M TTT-MLP
train at L = 2048. Layers small enough keep everything and skip the recomputation. Without gradients a group is just a
working set.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ttt_impl.layout import Layout
from ttt_impl.learner import Inputs, Learner, Weights
from ttt_impl.prepared import Prepared, prepare
from ttt_impl.scan_autograd import NO_RESETS, Resets, Scan
from ttt_impl.state import FastWeights, Rows, with_hidden

KEEP_BYTES = 64 * 2**20
"""A layer whose scan leaves less than this for its backward pass is not recomputed."""
SCORES = 3
"""Numbers a scan keeps for each token and place of its mini-batch."""
WORKING_SET = 256
"""Tokens in a group when nothing is kept."""


@dataclass(frozen=True)
class Walk:
    """How to go: what scans a group, its learner, the slots of the tokens, W0 [N, f1, ...]."""

    scan: Callable[[Prepared, Weights, bool, Resets, Rows | None], Scan]
    learner: Learner
    layout: Layout
    fresh: Weights
    group: int
    """Mini-batches recomputed together; 0: chosen by size."""
    kept: int
    """Numbers the scan keeps for its backward pass, for each token and feature."""
    record: int
    """Closed mini-batches to return."""

    def run(
        self, inputs: Inputs, state: FastWeights | None, keep_state: bool
    ) -> tuple[Tensor, FastWeights | None, tuple[FastWeights, ...]]:
        """Output [B, H, L, f] and, if wanted, what is remembered and the last full mini-batches."""
        layout, (batch, heads) = self.layout, inputs.q.shape[:2]
        cut = inputs.each(layout.cut)
        weights, pending = self.fresh, None
        if state is not None:
            weights, pending = state.weights, state.gradients
            held = state.rows[0][None, ..., : cut.k.shape[-1]]
            cut = cut._replace(k=torch.cat([cut.k[:1] + held, cut.k[1:]]))
        group, recompute = self._group(is_differentiated(inputs, weights), cut)
        outputs: list[Tensor] = []
        closed: list[FastWeights] = []
        open_rows: Rows = ()
        for part in self._groups(group):
            before = weights
            arguments = (cut.each(itemgetter(part)), weights, *self._part(part, heads), pending)
            if recompute:
                output, weights, rows = checkpoint(self._scan_group, *arguments, use_reentrant=False)
            else:
                output, weights, rows = self._scan_group(*arguments)
            outputs.append(output)
            if keep_state:
                open_rows = self._collect(open_rows, part.start, heads, rows)
            if self.record and part.stop - part.start == 1 and self._fills(part.start):
                closed.append(with_hidden(before, tuple(x[0] for x in rows)))
            pending = None
        end = with_hidden(tuple(w.detach() for w in weights), open_rows) if keep_state else None
        return layout.join(torch.cat(outputs), batch), end, tuple(closed[-self.record :] if self.record else ())

    def _groups(self, group: int) -> Iterator[slice]:
        """Groups of mini-batches; the last ones alone if they are to be recorded."""
        singles = max(0, self.layout.count - 1 - self.record) if self.record else self.layout.count
        for first in range(0, singles, group):
            yield slice(first, min(first + group, singles))
        for first in range(singles, self.layout.count):
            yield slice(first, first + 1)

    def _fills(self, m: int) -> bool:
        """Whether mini-batch m is full in every row."""
        return self.layout.close is None or bool(self.layout.close[:, m].all())

    def _scan_group(
        self, inputs: Inputs, weights: Weights, close: Tensor | None, resets: Resets, pending: Rows | None
    ) -> tuple[Tensor, Weights, Rows]:
        """f(q) [M, N, K, f], the weights after the group, and its rows: keys and gradients."""
        prepared = prepare(inputs, self.learner, close)
        result = self.scan(prepared, weights, self.learner.norm, resets, pending)
        repeats = inputs.q.shape[1] // len(inputs.gamma)
        gamma, beta = (x.repeat(repeats, 1)[:, None] for x in (inputs.gamma, inputs.beta))
        output = self.learner.output(inputs.q, result.z_bar, gamma, beta)
        return output, result.weights, (prepared.k, *result.rows)

    def _part(self, part: slice, heads: int) -> tuple[Tensor | None, Resets]:
        """Which mini-batches of a group are full [M, N], and where heads start afresh."""
        close = self.layout.close
        if close is not None:
            close = self._per_head(close[:, part], heads).mT
        where = {
            m - part.start: self._per_head(rows, heads)[:, None, None]
            for m, rows in self.layout.resets.items()
            if part.start <= m < part.stop
        }
        return close, Resets(where, self.fresh) if where else NO_RESETS

    def _collect(self, before: Rows, first: int, heads: int, rows: Rows) -> Rows:
        """Pick from a group [M, N, K, ...] the rows of every sequence's open mini-batch, zeros where none is open."""
        before = before or tuple(torch.zeros_like(x[0]) for x in rows)
        if self.layout.close is None:
            return before
        place = self._per_head(self.layout.close.sum(1), heads) - first
        here = ((place >= 0) & (place < len(rows[0])))[:, None, None]
        index = place.clamp(0, len(rows[0]) - 1), torch.arange(len(place), device=place.device)
        return tuple(torch.where(here, new[index].detach(), old) for new, old in zip(rows, before, strict=True))

    def _per_head(self, x: Tensor, heads: int) -> Tensor:
        """[1 or B, ...] -> [B * H, ...]."""
        return x.expand(len(self.fresh[0]) // heads, *x.shape[1:]).repeat_interleave(heads, 0)

    def _group(self, differentiated: bool, cut: Inputs) -> tuple[int, bool]:
        """Mini-batches in a group, and whether a group is recomputed in the backward pass."""
        count, size, width = self.layout.count, *cut.q.shape[2:]
        if not differentiated:
            return max(1, WORKING_SET // size), False
        if self.group:
            return self.group, True
        if (self.kept + SCORES * size / width) * cut.q.nbytes <= KEEP_BYTES:
            return count, False
        return math.isqrt(count - 1) + 1, True


def is_differentiated(inputs: Inputs, weights: Weights) -> bool:
    """Whether autograd will ask for the gradients of these."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *weights))
