"""How much of the machine others use: timings are worth nothing where they have to share the cores.

The load average cannot tell. It looks back over minutes, so it still holds the training that this job itself has just
finished, and it does not say whose load it is. So the work of all cores is read from the kernel (/proc/stat, in which
every tick of a core counts as idle or not) and what this job's own processes have used meanwhile is taken off; the
rest, over the seconds between two looks, is the number of cores that others kept busy. Where the kernel does not tell,
nobody knows, and nothing is refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

SAMPLE_SECONDS = 2.0
"""One look while waiting for calm."""
SHORTEST_SECONDS = 0.5
"""Ticks of a hundredth of a second say too little about less than this."""
PATIENCE_SECONDS = 60.0
"""How long one comparison waits for calm, all in all."""

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal: all but idle, iowait and what user holds already


def free_cores(cores: int, threads: int) -> float:
    """Cores that others may keep busy beside a model that computes on `threads` of them; half a core always."""
    return max(cores - threads, 0.5)


def busy_seconds() -> float | None:
    """Seconds that the cores this process may run on have worked since the machine started, whoever for."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in _STAT.read_text().splitlines()]
    except OSError:
        return None
    ticks = sum(int(line[1 + field]) for line in lines if line[0] in cores for field in _BUSY)
    return ticks / os.sysconf("SC_CLK_TCK")


class Neighbours:
    """Watches the cores. `own` tells the CPU seconds that this job's processes have used; tests bring a fake machine.

    `others` is what the last look found: the cores that others kept busy since the look before, None if unknown.
    """

    def __init__(
        self,
        own: Callable[[], float],
        busy: Callable[[], float | None] = busy_seconds,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.own, self.busy, self.now, self.sleep = own, busy, now, sleep
        self.patience = PATIENCE_SECONDS
        self.others: float | None = None
        self.begin()

    def begin(self) -> None:
        """The next look is about what comes from here on."""
        self.since, self.busy_before, self.own_before = self.now(), self.busy(), self.own()

    def look(self) -> float | None:
        """Cores that others kept busy since the last look; None if unknown, or if that was but a moment ago."""
        seconds = self.now() - self.since
        if self.busy_before is None or seconds < SHORTEST_SECONDS:
            return None
        before, own_before = self.busy_before, self.own_before
        self.begin()
        assert self.busy_before is not None
        self.others = max(0.0, (self.busy_before - before - (self.own_before - own_before)) / seconds)
        return self.others

    def calm(self, bound: float, waiting: Callable[[float], None]) -> bool:
        """Whether others keep at most `bound` cores busy, waiting for it while there is patience left.

        The last look counts: what others did while the last shape was timed needs no look of its own. Once patience is
        gone there is still one more look each time. `waiting` is told what was found before the first of them.
        """
        looks = 0
        while self.others is not None and self.others > bound:
            if looks and self.patience <= 0:
                return False
            if not looks:
                waiting(self.others)
            looks += 1
            self.patience -= SAMPLE_SECONDS
            self.sample()
        return True

    def sample(self) -> None:
        """Sit still and look."""
        self.begin()
        self.sleep(SAMPLE_SECONDS)
        self.look()
