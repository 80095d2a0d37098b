"""Taking turns: A B C A B C …, so that whatever slows the machine slows all sides alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from harness.measure.clock import Clock, CpuClock
from harness.statistics import median_interval


class Side(Protocol):
    """Whatever can be timed: a scenario, or the matrix products of a model."""

    def turn(self, clock: Clock) -> list[float]:
        """Seconds of the timed calls of one turn."""


@dataclass
class Times:
    """Seconds of each turn of one side, round by round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def contest(sides: dict[str, Side], rounds: int, clock: CpuClock) -> dict[str, Times]:
    """Time `rounds` turns of every prepared side, in turn; the calls of one turn are summed."""
    times = {name: Times() for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            clock.wall.clear()
            times[name].cpu.append(sum(side.turn(clock)))
            times[name].wall.append(sum(clock.wall))
    return times


def ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Median over rounds of the ratio within a round, and the ends of its 95 % interval (NaN: too few rounds)."""
    ratios = np.array(numerator) / np.array(denominator)
    return float(np.median(ratios)), *median_interval(ratios)
