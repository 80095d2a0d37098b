"""Peak memory of training and of scoring, measured on a model made small enough and carried on to the whole.

A step of training holds the weights, AdamW's two moments, and at its highest either the gradients (4 bytes a parameter,
all there when the backward ends) or what the forward keeps for the backward with the results in flight (all there when
it begins); in between one makes room for the other. Where gradients are summed over micro-batches both are there; where
blocks are computed again, both at the most. The second kind has no formula: every family keeps other things, and so
does every operator, fused or not. So a step is run and every tensor counted (`live.py`): at the true shape where that
takes no more than a moment, else at full width with one and two parts of the layers (`shrink.py`), few rows and a small
vocabulary. In these two every tensor is linear, so each is scaled by itself, and the peak is that of the whole batch,
at whatever moment that has it. Bytes are linear in the parts. Where even so the length is too long they are found at
lengths m, 2m, 3m and carried on; they are at most quadratic in it (scores of attention; a quadratic term below two
percent is rounding by blocks). A window of attention longer than 3m is then not seen to end there. What is counted is
what the operators of a CPU keep; CUDA kernels may keep less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from baselines.config import FamilyConfig
from baselines.interface import SequenceModel
from harness.plan.live import NoProducts, scoring_bytes, training_bytes, training_changes
from harness.plan.shrink import affordable_length, parts, with_any_weights, without_weights
from harness.runtime import RuntimeConfig
from harness.train.config import TrainConfig
from harness.train.engine import recompute_blocks

DIRECT_FLOPS, DIRECT_PARAMETERS = 2e10, 2e7
"""Up to so much a step is run as it is."""
SAMPLE_FLOPS = 5e9
"""A row of a step on a smaller model takes at most about so many."""
STAND_IN = 509
"""Tokens of the vocabulary there: a prime number that divides no other side of a tensor."""
SEGMENT = 2048
"""Tokens of a row that `SequenceModel.score` reads at a time."""
MOST_ROWS = 4
"""Of a batch of scoring that is tried."""
ROUNDING = 0.02
BYTES = 4
"""Of a parameter, a gradient and each of AdamW's moments."""


@dataclass(frozen=True)
class Read:
    """A batch of scoring: so many rows of so many tokens, of which the last `targets` are scored."""

    rows: int
    length: int
    targets: int


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of training, by what they are, and at the peak of scoring."""

    weights: int
    moments: int
    gradients: int
    activations: int
    scoring: int
    rows: int = 0
    """Sequences that the activations are those of."""
    together: bool = False
    """Whether gradients are there beside them: those of other rows, or of later blocks when one is computed again."""

    @property
    def training(self) -> int:
        """Everything at the peak."""
        return self.weights + self.moments + self.step if self.moments else 0

    @property
    def step(self) -> int:
        """What a step takes beyond what rests between steps: gradients and activations, or the more of them."""
        both = self.gradients, self.activations
        return sum(both) if self.together else max(both)

    def rows_within(self, most: int) -> int:
        """About the largest micro-batch that trains in so many bytes."""
        free = most - self.weights - self.moments - self.gradients
        return max(0, self.rows * free // max(1, self.activations))


def memory_of(
    family: FamilyConfig, vocab_size: int, train: TrainConfig, runtime: RuntimeConfig, reads: Sequence[Read]
) -> Memory:
    """Of a model that is trained by this recipe on one device, then scored by `reads`."""
    weights, dtype = BYTES * family.parameters(vocab_size), runtime.dtype
    rows = min(runtime.micro_batch or train.batch_size, train.batch_size)
    activations = activation_bytes(
        family, vocab_size, rows, train.length, dtype == "bfloat16", runtime.activation_checkpointing
    )
    scored = weights + weights // 2 if dtype == "bfloat16" else weights  # beside the trained ones a copy in that format
    scoring = scored + _scoring(family, vocab_size, reads, dtype)
    together = rows < train.batch_size or runtime.activation_checkpointing
    return Memory(weights, 2 * weights, weights, activations, scoring, rows, together)


def activation_bytes(
    family: FamilyConfig,
    vocab_size: int,
    batch: int,
    length: int,
    autocast: bool,
    recompute: bool = False,
    direct: float = DIRECT_FLOPS,
) -> int:
    """The most that a step holds beside weights, moments and gradients; run as it is up to `direct` FLOPs."""
    whole = without_weights(family, vocab_size)
    if batch * whole.flops(length, "train") <= direct and family.parameters(vocab_size) <= DIRECT_PARAMETERS:
        return training_bytes(_to_train(family, vocab_size, recompute), batch, length, autocast)
    cuts, count = parts(family, vocab_size, length)
    found = [_carried_on(cut, vocab_size, batch, length, autocast, recompute) for cut in cuts]
    return round(found[0] + (count - 1) * (found[-1] - found[0]))


def _to_train(family: FamilyConfig, vocab_size: int, recompute: bool) -> SequenceModel:
    baseline = with_any_weights(family, vocab_size)
    if recompute:
        recompute_blocks(baseline.model)
    return baseline


def _carried_on(
    family: FamilyConfig, vocab_size: int, batch: int, length: int, autocast: bool, recompute: bool
) -> float:
    """Bytes of a step of `batch` × `length` tokens from steps of few rows of a model that knows few tokens."""
    known = min(vocab_size, STAND_IN)
    baseline, values = _to_train(family, known, recompute), list[float]()
    lengths = _lengths(family, baseline, length)
    if lengths == [length] and baseline.flops(length, "train") > SAMPLE_FLOPS:
        row = training_changes(baseline, 1, length, autocast).with_vocabulary(known, vocab_size)
        return batch * row.peak  # what rows share is little beside one so long
    for tried in lengths:
        less, more = (
            training_changes(baseline, rows, tried, autocast).with_vocabulary(known, vocab_size) for rows in (2, 3)
        )  # a single row spares copies that others need
        values.append(less.carried_on(more, batch - 2))
    return along_length(lengths, values, length)


def _lengths(family: FamilyConfig, baseline: SequenceModel, length: int) -> list[int]:
    """The whole length, or three of which a family that fills up mini-batches fills up none."""
    longest, padded = affordable_length(baseline, length, SAMPLE_FLOPS), getattr(family, "mini_batch_size", 1)
    if longest == length or 6 * padded >= length:
        return [length]
    third = -(-longest // 3 // padded) * padded
    return [third, 2 * third, 3 * third]


def along_length(lengths: Sequence[int], values: Sequence[float], length: int) -> float:
    """What was found at `lengths`, equally far apart, carried on to `length`."""
    if lengths[-1] == length:
        return values[-1]
    square = np.polyfit(lengths, values, 2)
    bends = square[0] * lengths[-1] ** 2 > ROUNDING * values[-1]
    return float(np.polyval(square if bends else np.polyfit(lengths[-2:], values[-2:], 1), length))


def _scoring(family: FamilyConfig, vocab_size: int, reads: Sequence[Read], dtype: str = "float32") -> int:
    """Beside the weights, in the batch that takes most: the state of its rows, and a segment on its way.

    The state is that of all layers, what a segment takes is that of the widest moment in one, which is neither the
    first, whose input is the embedding, nor the last, which finishes few tokens.
    """
    cuts, count = parts(family, vocab_size, SEGMENT)
    if count > 2:
        depth: int = family.num_layers  # type: ignore[attr-defined]
        cuts = [*cuts, dataclasses.replace(family, num_layers=3 * depth // count)]  # type: ignore[call-arg]
    models = [with_any_weights(cut, vocab_size) for cut in cuts]
    for model in models:
        torch.nn.Module.to(model.model, getattr(torch, dtype))
    most = 0.0
    for read in extremes(reads):
        size = affordable_length(models[-1], read.length, DIRECT_FLOPS)
        states = [_state_bytes(model, read, size) for model in models[:2]]
        state = states[0] + (count - 1) * (states[-1] - states[0])
        most = max(most, state + _passing_bytes(models[-1], read, size))
    return round(most)


def extremes(reads: Sequence[Read]) -> set[Read]:
    """The longest, that of the most rows, and that of the most tokens."""
    keys: list[Callable[[Read], int]] = [lambda r: r.length, lambda r: r.rows, lambda r: r.rows * r.length]
    return {max(reads, key=key) for key in keys} if reads else set()


def _state_bytes(baseline: SequenceModel, read: Read, size: int) -> float:
    """Bytes of the state of all rows from that after `size` tokens; it is linear in them."""
    whole = _state(baseline, size)
    if size == read.length:
        return read.rows * whole
    return read.rows * (whole + (whole - _state(baseline, size // 2)) * (read.length - size) / (size - size // 2))


def _passing_bytes(baseline: SequenceModel, read: Read, size: int) -> float:
    """Bytes of a batch beside its state, from some of its rows and half of those, of `size` tokens.

    Beyond a segment they grow little with the length (masks over what was read before).
    """
    rows, slope = min(read.rows, MOST_ROWS), 0.0
    found = _passing(baseline, rows, size, read.targets)
    if rows < read.rows:
        slope = (found - _passing(baseline, rows // 2, size, read.targets)) / (rows - rows // 2)
    return (found + slope * (read.rows - rows)) * min(SEGMENT, read.length) / min(SEGMENT, size)


def _passing(baseline: SequenceModel, rows: int, length: int, targets: int) -> int:
    """Bytes that scoring takes beside weights and state."""
    return scoring_bytes(baseline, rows, length, min(targets, length)) - rows * _state(baseline, length)


def _state(baseline: SequenceModel, length: int) -> int:
    """Bytes of the state of one row after `length` tokens."""
    with torch.no_grad(), NoProducts():
        return baseline.state_bytes(baseline.prefill(torch.zeros(1, length, dtype=torch.long))[1])
