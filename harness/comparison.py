"""The comparison in progress: which rows are there, which are missing, who works, and whose turn it is."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Self

from harness.config import RunConfig
from harness.data.tokens import TokenStore
from harness.jobs import Job, Shape
from harness.progress import Display
from harness.provenance import provenance
from harness.records import (
    Conditions,
    Decode,
    Diagnostics,
    Dynamic,
    Gate,
    LmEval,
    Loaded,
    Prefill,
    Record,
    RecordStore,
    TextRecall,
    Training,
    TrainStep,
    Values,
)
from harness.worker import Outcome, Worker, server_context

STAGES = {
    "obtain": "train", "gate": "gate", "position": "score", "fixed_target": "contexts", "window": "windows",
    "dynamic": "adapt", "text_recall": "recall", "lm_eval": "lm-eval", "diagnostics": "diagnose",
}  # fmt: skip


class Comparison:
    """One seed of a comparison. Use as a context manager: leaving it ends the workers."""

    def __init__(self, config: RunConfig, device: str, tokens: TokenStore, display: Display) -> None:
        self.config, self.device, self.display = config, device, display
        self.store = RecordStore(config.run_folder)
        self.provenance = provenance(config.hash, tokens.hash, config.seed)
        self.parts: dict[str, float] = {}
        self.workers: dict[str, Worker] = {}
        self.context = server_context()
        floors = [f"{order}-gram" for order in config.measure.ngrams]
        self.jobs = {
            name: Job(name, index, config.model.get(name), config, device, tokens.folder)
            for index, name in enumerate([*config.model, *floors])
        }
        self.rows: dict[tuple[str, str, int], Record] = {}
        for row in self.store:
            self._remember(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers.values():
            worker.close()

    def quality(self) -> None:
        """Train or load, gate and score every model, and score the floors: whatever has no good row yet."""
        with self._part("train, gate, score"):
            self._run({name: self._missing(job) for name, job in self.jobs.items()})

    def obtain_all(self) -> None:
        """Take part in the training of every model (what the other processes of torchrun do)."""
        self._run({name: ["obtain"] for name in self.config.model}, keep_records=False)

    def timing(self) -> None:
        """Time what has no good row yet: all shapes of all models warmed first, then in turn."""
        if not self.config.measure.timing:
            return
        with self._part("timing"):
            waiting = {shape: self._to_time(shape) for shape in self._shapes()}
            names = sorted({name for group in waiting.values() for name in group}, key=list(self.jobs).index)
            self._run({name: ["obtain"] for name in names if name not in self.workers}, keep_records=False)
            self.display.stage("timing", "warm-up")
            for shape, group in waiting.items():
                waiting[shape] = [name for name in group if self._warm(name, shape)]
            self.display.stage("timing", "in turn")
            for index, (shape, group) in enumerate(waiting.items()):
                self._time(shape, group)
                self.display.advance("timing", index + 1, len(waiting), unit="shapes")

    def failures(self) -> list[Record]:
        """Rows of this comparison's models whose last state is not ok."""
        return [row for row in self.rows.values() if row.status != "ok" and row.model in self.jobs]

    def cpu_seconds(self) -> float:
        """CPU seconds of all living workers."""
        outcomes = [worker.call("cpu_seconds") for worker in self.workers.values()]
        return sum(outcome.value for outcome in outcomes if outcome.status == "ok")

    def record(self, name: str, family: str, kind: str, values: Values | None, conditions: Conditions) -> Record:
        """A row of this comparison, stamped with where it comes from."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return Record(
            kind, name, family, self.config.seed, values=values, conditions=conditions,
            provenance=self.provenance, time=now,
        )  # fmt: skip

    def _missing(self, job: Job) -> list[str]:
        conventions = self.config.measure.conventions
        if job.family is None:
            return [kind for kind in conventions if not self._good(kind, job.name)]
        dynamic = [Dynamic.kind] if self.config.measure.dynamic.method != "none" else []
        recall = [TextRecall.kind] if self.config.measure.recall.tasks else []
        tasks = [LmEval.kind] if self.config.tasks else []
        kinds = (Gate.kind, *conventions, *dynamic, *recall, *tasks, Diagnostics.kind)
        steps = [kind for kind in kinds if not self._good(kind, job.name)]
        obtained = self._good(Loaded.kind if job.family.checkpoint else Training.kind, job.name)
        return ["obtain", *steps] if steps or not obtained else []

    def _run(self, steps: dict[str, list[str]], keep_records: bool = True) -> None:
        """Run each model's steps in order, several models at a time; a step that fails ends its model's line."""
        queue = [name for name in self.jobs if steps.get(name)]
        limit = 1 if "WORLD_SIZE" in os.environ else self.config.runtime.concurrency(self.device)
        active: dict[Any, str] = {}
        while queue or active:
            while queue and len(active) < limit:
                name = queue.pop(0)
                worker = self.workers.setdefault(name, self._start(name))
                active[worker.connection] = name
                self._begin(name, steps[name][0])
            for connection in wait(list(active), timeout=1.0):
                name = active[connection]
                message = self.workers[name].answer()
                if not isinstance(message, Outcome):
                    self.display.advance(name, **message)
                    continue
                step, rest = steps[name][0], steps[name][1:]
                good = self._ended(name, step, message, keep_records)
                steps[name] = rest if good else []
                if steps[name]:
                    self._begin(name, steps[name][0])
                else:
                    del active[connection]

    def _start(self, name: str) -> Worker:
        return Worker(self.context, self.jobs[name], self.config.runtime.threads)

    def _begin(self, name: str, step: str) -> None:
        self.display.stage(name, STAGES[step])
        self.workers[name].ask(step)

    def _ended(self, name: str, step: str, outcome: Outcome, keep_record: bool) -> bool:
        """Keep the row of a finished step; whether the model may go on."""
        values, family = outcome.value, self.jobs[name].family
        loads = family is not None and family.checkpoint
        kind = {"obtain": Loaded.kind if loads else Training.kind}.get(step, step)
        row = self.record(name, family.family if family else "ngram", kind, values, self._conditions(name))
        row.status, row.message = outcome.status, outcome.message
        if isinstance(values, Gate) and not all(check.passed for check in values.checks):
            failed = [
                f"{check.name} ({check.value:.1e} > {check.bound:.0e})" for check in values.checks if not check.passed
            ]
            row.status, row.message = "failed", "gate: " + "; ".join(failed)
        if row.status != "ok":
            self.display.say(f"{name:>14} {STAGES[step]}: {row.status}: {row.message}", style="red")
            self.workers.pop(name).close()
        if keep_record or row.status != "ok":
            self._keep(row)
        return row.status == "ok"

    def _shapes(self) -> list[Shape]:
        measure = self.config.measure
        return [
            Shape(TrainStep.kind, self.config.train.length),
            *(Shape(Prefill.kind, length) for length in measure.prefill_lengths),
            *(Shape(Decode.kind, context) for context in measure.decode_contexts),
        ]

    def _to_time(self, shape: Shape) -> list[str]:
        """The models to time at `shape`: all that passed the gate, or none if each of them has its row.

        Never a part of them, so that rows of one shape were always taken in turn.
        """
        passed = [name for name in self.config.model if self._good(Gate.kind, name)]
        return [] if all(self._good(shape.kind, name, shape.length) for name in passed) else passed

    def _warm(self, name: str, shape: Shape) -> bool:
        if name not in self.workers:
            return False
        return self._timed_ok(name, shape, self.workers[name].call("warm", shape))

    def _time(self, shape: Shape, names: list[str]) -> None:
        """Turns A B C D A B C D … until each has enough timed calls and seconds; then a row each."""
        measure = self.config.measure
        load = os.getloadavg()[0]
        seconds: dict[str, list[float]] = {name: [] for name in names if name in self.workers}
        while any(len(s) < measure.repeats or sum(s) < measure.seconds for s in seconds.values()):
            for name in list(seconds):
                outcome = self.workers[name].call("turn", shape)
                if self._timed_ok(name, shape, outcome):
                    seconds[name] += outcome.value
                else:
                    del seconds[name]
        for name in seconds:
            values = self.workers[name].call("values", shape).value
            row = self.record(name, self.config.model[name].family, shape.kind, values, self._conditions(name, load))
            row.length = shape.length
            self._keep(row)

    def _timed_ok(self, name: str, shape: Shape, outcome: Outcome) -> bool:
        """Whether a timing task went well; if not, its row is kept, and a dead worker let go."""
        if outcome.status == "ok":
            return True
        row = self.record(name, self.config.model[name].family, shape.kind, None, self._conditions(name))
        row.status, row.message, row.length = outcome.status, outcome.message, shape.length
        self._keep(row)
        if not self.workers[name].process.is_alive():
            self.workers.pop(name).close()
        return False

    def _conditions(self, name: str, load: float | None = None) -> Conditions:
        """What the model's last task ran under."""
        runtime, path = self.config.runtime, ""
        if name in self.workers:
            path = self.workers[name].call("kernel_path").value or ""
        return Conditions(self.device, runtime.dtype, runtime.threads, kernel_path=path, load_average=load)

    def _good(self, kind: str, name: str, length: int = 0) -> bool:
        row = self.rows.get((kind, name, length))
        return row is not None and row.status == "ok"

    def _keep(self, row: Record) -> None:
        self.store.append(row)
        self._remember(row)

    def _remember(self, row: Record) -> None:
        if row.seed == self.config.seed:
            self.rows[row.kind, row.model, row.length] = row

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.parts[name] = time.perf_counter() - started
