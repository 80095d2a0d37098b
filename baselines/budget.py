"""What a comparison holds equal: parameters, FLOPs of training, bytes of the state, or the shape alone.

Parameters follow from a config by formula. The other two are asked of the model itself: FLOPs of one that is built on
the `meta` device, so without weights, the state of one that has read `length` tokens. Those budgets have no number of
their own: the first model is fitted to `size.parameters`, and what it costs is what all others are to cost.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from baselines.config import FamilyConfig, SizeConfig, fit_to_size
from baselines.registry import find

WIDEST, DEPTHS = 4, 3
"""Widths are tried up to so many times that of `size`, and so many depths."""
C = TypeVar("C")
WORDS = {"train_flops": "training FLOPs a token", "state_bytes": "bytes of state"}


class Budget:
    """Fits the models of one comparison, one after the other; the first is the measure of the others."""

    def __init__(self, size: SizeConfig, vocab_size: int, length: int) -> None:
        self.size, self.vocab_size, self.length = size, vocab_size, length
        self.target: int | None = None
        self.first = ""
        self._costs: dict[str, int] = {}

    def fit(self, name: str, config: FamilyConfig) -> FamilyConfig:
        """The complete config of model `name` that meets the budget; ValueError if none comes within the tolerance."""
        exact = config.exact(self.size) if self.size.match == "shape" else None
        if exact is not None:
            return exact
        if self.size.match in ("parameters", "shape"):
            return fit_to_size(name, config, self.size, self.vocab_size)
        if self.target is None:
            fitted = fit_to_size(name, config, self.size, self.vocab_size)
            self.target, self.first = self.cost(fitted), name
            return fitted
        return self._nearest(name, config)

    def cost(self, config: FamilyConfig) -> int:
        """What `size.match` counts of a complete config; counted once."""
        key = repr(config)
        if key not in self._costs:
            cost = state_bytes if self.size.match == "state_bytes" else train_flops
            self._costs[key] = cost(config, self.vocab_size, self.length)
        return self._costs[key]

    def _nearest(self, name: str, config: FamilyConfig) -> FamilyConfig:
        assert self.target is not None
        nearest, deviation = config, float("inf")
        for candidates in self._series(config):
            found = nearest_rising(candidates, self.cost, self.target)
            if abs(self.cost(found) / self.target - 1) < abs(deviation):
                nearest, deviation = found, self.cost(found) / self.target - 1
            if abs(deviation) <= self.size.tolerance:
                return nearest
        raise ValueError(
            f"model.{name}: the nearest setting has {self.cost(nearest):,} {WORDS[self.size.match]}, {deviation:+.1%}"
            f" from the {self.target:,} of model.{self.first} (size.match={self.size.match}, size.tolerance="
            f"{self.size.tolerance:.0%}): match something else, leave its sizes null, or raise size.tolerance"
        )

    def _series(self, config: FamilyConfig) -> Iterator[list[FamilyConfig]]:
        """Complete configs of rising cost, series after series, the first near the shape of `size`.

        FLOPs rise with what candidates differ in; a state grows with the width, and of each width the candidate
        nearest in parameters is taken.
        """
        for shapes in series_of_shapes(self.size):
            if self.size.match == "state_bytes":
                yield [self._nearest_in_parameters(config, shape) for shape in shapes]
                continue
            for shape in sorted(shapes, key=lambda shape: abs(shape.hidden_size - self.size.hidden_size)):
                yield sorted(config.candidates(shape), key=lambda c: c.parameters(self.vocab_size))

    def _nearest_in_parameters(self, config: FamilyConfig, shape: SizeConfig) -> FamilyConfig:
        return min(config.candidates(shape), key=lambda c: abs(c.parameters(self.vocab_size) - shape.parameters))


def nearest_rising(candidates: list[C], cost: Callable[[C], int], target: int) -> C:
    """The candidate whose cost is nearest to `target`, where costs rise along the list; by bisection."""
    low, high = 0, len(candidates) - 1
    costs = {i: cost(candidates[i]) for i in (low, high)}
    while high - low > 1 and costs[low] < target < costs[high]:
        middle = (low + high) // 2
        costs[middle] = cost(candidates[middle])
        low, high = (middle, high) if costs[middle] < target else (low, middle)
    return candidates[min(costs, key=lambda i: abs(costs[i] - target))]


def series_of_shapes(size: SizeConfig) -> Iterator[list[SizeConfig]]:
    """For `size`'s own depth and head width, then for others near, every width up to `WIDEST` times its own."""
    depths = sorted(range(1, 2 * size.num_layers + 1), key=lambda depth: abs(depth - size.num_layers))[:DEPTHS]
    heads = [size.head_dim, size.head_dim // 2, size.head_dim * 2, size.head_dim * 4]
    for num_layers, head_dim in itertools.product(depths, [head for head in heads if head % 2 == 0]):
        widths = range(head_dim, WIDEST * size.hidden_size + 1, head_dim)
        yield [
            dataclasses.replace(size, num_layers=num_layers, head_dim=head_dim, hidden_size=width) for width in widths
        ]


def train_flops(config: FamilyConfig, vocab_size: int, length: int) -> int:
    """FLOPs a token of training on sequences of `length` tokens."""
    with torch.device("meta"):
        baseline = find(config.family).build(config, vocab_size)
    return baseline.flops(length, "train") // length


def state_bytes(config: FamilyConfig, vocab_size: int, length: int) -> int:
    """Bytes of the state after `length` tokens, counted on the object."""
    baseline = find(config.family).build(config, vocab_size)
    with torch.inference_mode():
        return baseline.state_bytes(baseline.prefill(torch.zeros(1, length, dtype=torch.long))[1])
