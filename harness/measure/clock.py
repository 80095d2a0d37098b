"""Clocks: what turns marks put around work into seconds.

On a CPU a mark is the wall clock; on a GPU it is an event recorded into the stream, read only after everything
has been issued, so nothing synchronises inside the timed region. Tests put a fake clock here.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Marks moments and tells the seconds between them."""

    def mark(self) -> Any:
        """This moment, as something that `seconds` understands."""

    def seconds(self, marks: list[Any]) -> list[float]:
        """Seconds between each mark and the next: one fewer than there are marks."""


class WallClock:
    """The monotonic wall clock, for work that has ended when the call returns (CPU)."""

    def mark(self) -> float:
        """Seconds since an arbitrary origin."""
        return time.perf_counter()

    def seconds(self, marks: list[float]) -> list[float]:
        """Seconds between neighbouring marks."""
        return [after - before for before, after in pairwise(marks)]


class CpuClock:
    """CPU seconds of this process, all its threads: a neighbour on the same cores hardly lengthens them.

    The wall seconds of the same stretches gather in `wall`.
    """

    def __init__(self) -> None:
        self.wall: list[float] = []

    def mark(self) -> tuple[float, float]:
        """CPU and wall seconds since arbitrary origins."""
        return time.process_time(), time.perf_counter()

    def seconds(self, marks: list[tuple[float, float]]) -> list[float]:
        """CPU seconds between neighbouring marks."""
        self.wall += [after - before for (_, before), (_, after) in pairwise(marks)]
        return [after - before for (before, _), (after, _) in pairwise(marks)]


class CudaClock:
    """CUDA events on the current stream: device time, free of synchronisation until the seconds are asked for."""

    def mark(self) -> torch.cuda.Event:
        """An event recorded now."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: list[torch.cuda.Event]) -> list[float]:
        """Seconds between neighbouring events; waits for the last one."""
        marks[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]


def clock_for(device: str) -> Clock:
    """The clock that is right for `device`."""
    return CudaClock() if device == "cuda" else WallClock()
