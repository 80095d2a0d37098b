"""The comparison in progress: which rows are there, which are missing, and who works."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Self

from harness.config import RunConfig
from harness.data.tokens import TokenStore
from harness.jobs import Job
from harness.locks import hold
from harness.order import LEAST_STEPS, training_costs
from harness.progress import Display
from harness.provenance import provenance
from harness.records import (
    Conditions,
    Diagnostics,
    Dynamic,
    Gate,
    LmEval,
    Loaded,
    Record,
    RecordStore,
    TextRecall,
    Training,
    Tuning,
    Values,
)
from harness.tuning import choose, grid, shared_name
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
        self.provenance = provenance(config.hash, tokens.hash, config.seed, list(config.model))
        self.parts: dict[str, float] = {}
        self.cpu_parts: dict[str, float] = {}
        self.cpu_of_ended = 0.0
        self.workers: dict[str, Worker] = {}
        self.context = server_context()
        floors = [f"{order}-gram" for order in config.measure.ngrams]
        grids = {tried: at for name in config.model for tried, at in grid(config, name).items()}
        self.jobs = {
            name: Job(name, index, config.model.get(shared_name(name)), at, device, tokens.folder)
            for index, (name, at) in enumerate((grids | dict.fromkeys(floors, config)).items())
        }
        self.tuned: dict[str, Tuning] = {}
        self.rows: dict[tuple[str, str, int, int], Record] = {}
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
        self._tune()
        with self.part("train, gate, score"):
            floors = [name for name, job in self.jobs.items() if job.family is None]
            steps = {name: self._missing(self.jobs[name]) for name in [*self.models, *floors]}
            self._run({name: steps[name] for name in self._longest_first(steps)})

    def obtain_all(self) -> None:
        """Take part in the training of every model (what the other processes of torchrun do)."""
        self._run({name: ["obtain"] for name, job in self.jobs.items() if job.family}, keep_records=False)

    def _tune(self) -> None:
        """Train every model at every rate of the grid, where that has not been done, and choose."""
        if self.config.train.rates:
            with hold(self.config.run_folder / ".tuning"):  # the first seed chooses for all, also of those beside it
                for row in self.store:
                    self._remember(row)
                self._choose()

    def _choose(self) -> None:
        grids = {name: grid(self.config, name) for name in self.config.model if name not in self.tuned}
        steps = {tried: ["obtain"] for rates in grids.values() if len(rates) > 1 for tried in rates}
        if not steps:
            return
        with self.part("tune"):
            self._run({name: steps[name] for name in self._longest_first(steps)}, keep_records=False)
            for name in dict.fromkeys(map(shared_name, steps)):
                values = choose(self.config, name)
                self.keep(self.record(name, self.family(name), Tuning.kind, values, self.conditions(name)))
            for name in [name for name in self.workers if name not in self.models]:
                self.let_go(name)

    @property
    def models(self) -> list[str]:
        """What is compared: each model at the shared rate and, where another is its best, at its own."""
        chosen = {tuning.chosen for tuning in self.tuned.values()}
        return [name for name in self.jobs if name in self.config.model or name in chosen]

    def obtain(self, names: Iterable[str]) -> None:
        """Give each of these models a process that has it."""
        wanted = set(names) - set(self.workers)
        self._run({name: ["obtain"] for name in self.jobs if name in wanted}, keep_records=False)

    def failures(self) -> list[Record]:
        """Rows of this comparison's models whose last state is not ok."""
        return [row for row in self.rows.values() if row.status != "ok" and row.model in self.jobs]

    def cpu_seconds(self) -> float:
        """CPU seconds of this process and of its workers, but for those that were killed."""
        return time.process_time() + self.cpu_of_ended + sum(map(self._cpu_of, self.workers.values()))

    def _cpu_of(self, worker: Worker) -> float:
        outcome = worker.call("cpu_seconds")
        return outcome.value if outcome.status == "ok" else 0.0

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
            return [kind for kind in conventions if not self.good(kind, job.name)]
        dynamic = [Dynamic.kind] if self.config.measure.dynamic.method != "none" else []
        recall = [TextRecall.kind] if self.config.measure.recall.tasks else []
        tasks = [LmEval.kind] if self.config.tasks else []
        kinds = (Gate.kind, *conventions, *dynamic, *recall, *tasks, Diagnostics.kind)
        steps = [kind for kind in kinds if not self.good(kind, job.name)]
        obtained = self.good(Loaded.kind if self._loads(job.name) else Training.kind, job.name)
        return ["obtain", *steps] if steps or not obtained else []

    @property
    def _places(self) -> int:
        """Models that may work at the same time."""
        return 1 if "WORLD_SIZE" in os.environ else self.config.runtime.concurrency(self.device)

    def _longest_first(self, steps: dict[str, list[str]]) -> list[str]:
        """The order to begin in: what trains longest first, so that no model trains on alone when all others are done.

        Costs are measured, by a step each, unless there is nothing to gain by an order or hardly anything to train.
        """
        trained = [
            name
            for name, todo in steps.items()
            if "obtain" in todo and not (self._loads(name) or self.good(Training.kind, name))
        ]
        if len(trained) <= self._places or self._places == 1 or self.config.train.steps < LEAST_STEPS:
            return list(steps)
        weighed = list(dict.fromkeys(map(shared_name, trained)))
        for name in weighed:
            self.display.stage(name, "weigh")
        cost = training_costs(weighed, self._places, self._worker, self.let_go)
        return sorted(steps, key=lambda name: -cost.get(shared_name(name), 0.0))

    def _loads(self, name: str) -> bool:
        family = self.jobs[name].family
        return family is not None and family.checkpoint is not None

    def _run(self, steps: dict[str, list[str]], keep_records: bool = True) -> None:
        """Run each model's steps in order, several models at a time; a step that fails ends its model's line.

        A scoring convention that a model cannot be asked for is passed over.
        """
        queue = [name for name, todo in steps.items() if todo]
        limit = self._places
        active: dict[Any, str] = {}
        while queue or active:
            while queue and len(active) < limit:
                name = queue.pop(0)
                active[self._worker(name).connection] = name
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

    def _worker(self, name: str) -> Worker:
        """The process of a model, started if it has none."""
        if name not in self.workers:
            self.workers[name] = Worker(self.context, self.jobs[name], self.config.runtime.threads)
        return self.workers[name]

    def let_go(self, name: str) -> None:
        """End the process of a model."""
        worker = self.workers.pop(name)
        self.cpu_of_ended += self._cpu_of(worker)
        worker.close()

    def _begin(self, name: str, step: str) -> None:
        self.display.stage(name, STAGES[step])
        self.workers[name].ask(step)

    def _ended(self, name: str, step: str, outcome: Outcome, keep_record: bool) -> bool:
        """Keep the row of a finished step; whether the model may go on."""
        values = outcome.value
        kind = {"obtain": Loaded.kind if self._loads(name) else Training.kind}.get(step, step)
        row = self.record(name, self.family(name), kind, values, self.conditions(name))
        row.conditions.compile = isinstance(values, Training) and values.compile
        row.status, row.message = outcome.status, outcome.message
        if isinstance(values, Gate) and values.failed:
            row.status, row.message = "failed", "gate: " + "; ".join(map(str, values.failed))
        goes_on = row.status == "ok" or (row.status == "unsupported" and step in self.config.measure.conventions)
        if row.status != "ok":
            self.display.say(f"{name:>14} {STAGES[step]}: {row.status}: {row.message}", style="red")
        if not goes_on:
            self.let_go(name)
        if keep_record or (row.status != "ok" and name in self.models):
            self.keep(row)
        return goes_on

    def conditions(self, name: str) -> Conditions:
        """What the model's last task ran under."""
        runtime, path = self.config.runtime, ""
        if name in self.workers:
            path = self.workers[name].call("kernel_path").value or ""
        return Conditions(self.device, runtime.dtype, runtime.threads, kernel_path=path)

    def family(self, name: str) -> str:
        """The family of a model, or `ngram` of a floor."""
        family = self.jobs[name].family
        return family.family if family else "ngram"

    def good(self, kind: str, name: str) -> bool:
        """Whether a measurement without a shape has its row."""
        row = self.rows.get((kind, name, 0, 0))
        return row is not None and row.status == "ok"

    def keep(self, row: Record) -> None:
        """Write a row."""
        self.store.append(row)
        self._remember(row)

    def _remember(self, row: Record) -> None:
        if isinstance(row.values, Tuning):  # the first seed chooses for all
            self.tuned.setdefault(row.model, row.values)
        if row.seed == self.config.seed:
            self.rows[row.kind, row.model, row.length, row.batch] = row

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note what is done within as a part of the job's cost."""
        wall, cpu = time.perf_counter(), self.cpu_seconds()
        yield
        self.parts[name], self.cpu_parts[name] = time.perf_counter() - wall, self.cpu_seconds() - cpu
