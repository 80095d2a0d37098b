"""The timing of a comparison: every shape of every model warmed first, then each shape in turn, on a machine at rest.

One model works at a time. The parent passes the turn and sleeps until the answer comes; the processes of the other
models sleep until they are asked. Turns go A B C D A B C D …, so that whatever slows the machine slows all models
alike, and a shape is timed for all models or for none.
"""

from __future__ import annotations

import os

from harness.comparison import Comparison
from harness.jobs import Shape, shapes
from harness.neighbours import Neighbours, free_cores
from harness.records import Gate, TrainStep
from harness.worker import Outcome


class Timing:
    """What of one seed of a comparison has no good timings yet, and whose turn it is."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison, self.config = comparison, comparison.config
        self.neighbours = Neighbours(comparison.cpu_seconds)
        self.cores = len(os.sched_getaffinity(0))
        self.told = False

    @property
    def bound(self) -> float:
        """Cores that others may keep busy while models are timed."""
        allowed = self.config.measure.max_load
        return free_cores(self.cores, self.config.runtime.threads) if allowed is None else allowed

    def run(self) -> None:
        """Time what has no good row yet: all shapes of all models warmed first, then in turn."""
        comparison, display = self.comparison, self.comparison.display
        with comparison.part("timing"):
            waiting = {shape: self._to_time(shape) for shape in shapes(self.config)}
            comparison.obtain(name for group in waiting.values() for name in group)
            display.stage("timing", "warm-up")
            for shape, group in waiting.items():
                waiting[shape] = [name for name in group if self._warm(name, shape)]
            display.stage("timing", "in turn")
            if self.bound < self.cores and any(waiting.values()):
                self.neighbours.sample()
            for index, (shape, group) in enumerate(waiting.items()):
                self._time(shape, group)
                display.advance("timing", index + 1, len(waiting), unit="shapes")

    def _to_time(self, shape: Shape) -> list[str]:
        """The models to time at `shape`: all that passed the gate, or none if each of them has its row.

        Never a part of them, so that rows of one shape were always taken in turn.
        """
        comparison = self.comparison
        passed = [name for name in comparison.models if comparison.good(Gate.kind, name)]
        rows = (comparison.rows.get((shape.kind, name, shape.length, shape.batch)) for name in passed)
        return [] if all(row is not None and row.status in ("ok", "unsupported") for row in rows) else passed

    def _warm(self, name: str, shape: Shape) -> bool:
        workers = self.comparison.workers
        return name in workers and self._went_well(name, shape, workers[name].call("warm", shape))

    def _time(self, shape: Shape, names: list[str]) -> None:
        """Turns A B C D A B C D … until each model has had enough of them and enough seconds; then a row each."""
        measure, workers = self.config.measure, self.comparison.workers
        turns: dict[str, list[float]] = {name: [] for name in names if name in workers}
        if turns and not self.neighbours.calm(self.bound, self._tell_of_waiting):
            self._skip(shape, list(turns))
            return
        load = os.getloadavg()[0]
        self.neighbours.begin()
        while any(len(had) < measure.repeats or sum(had) < measure.seconds for had in turns.values()):
            for name in list(turns):
                outcome = workers[name].call("turn", shape)
                if self._went_well(name, shape, outcome):
                    turns[name].append(sum(outcome.value))
                else:
                    del turns[name]
        others = self.neighbours.look()
        for name in turns:
            outcome = workers[name].call("values", shape)
            if self._went_well(name, shape, outcome):
                self._keep(name, shape, outcome, (load, os.getloadavg()[0], others))

    def _skip(self, shape: Shape, names: list[str]) -> None:
        """A row for each model that says why it was not timed; the next run of this comparison fills it."""
        why = (
            f"not timed: others keep more than {self.bound:g} of {self.cores} cores busy (measure.max_load);"
            " the same command fills this in when they are done"
        )
        for name in names:
            self._keep(name, shape, Outcome(status="skipped", message=why), (None, None, self.neighbours.others))

    def _tell_of_waiting(self, others: float) -> None:
        if self.told:
            return
        self.told = True
        text = f"others keep {others:.1f} of {self.cores} cores busy: waiting until it is {self.bound:g} or less"
        self.comparison.display.say(f"{'timing':>14} {text}")

    def _went_well(self, name: str, shape: Shape, outcome: Outcome) -> bool:
        """Whether a timing task went well; if not, its row is kept, and a dead worker let go."""
        if outcome.status == "ok":
            return True
        self._keep(name, shape, outcome)
        if not self.comparison.workers[name].process.is_alive():
            self.comparison.let_go(name)
        return False

    def _keep(
        self,
        name: str,
        shape: Shape,
        outcome: Outcome,
        loads: tuple[float | None, float | None, float | None] = (None, None, None),
    ) -> None:
        """A row of what came out; `loads` are the load averages before and after and what others used meanwhile."""
        comparison = self.comparison
        conditions = comparison.conditions(name)
        conditions.compile = shape.kind == TrainStep.kind and self.config.runtime.compile
        conditions.load_average, conditions.load_average_after, conditions.others_load = loads
        row = comparison.record(name, comparison.family(name), shape.kind, outcome.value, conditions)
        row.status, row.message = outcome.status, outcome.message
        row.length, row.batch = shape.length, shape.batch
        comparison.keep(row)
