"""`python -m harness.plan.check`: a plan against the small run that it plans, and what that took.

The main job is done for real, in a folder that is thrown away. From its records come the CPU seconds of every training
and of the whole phase in which models are trained, gated and scored; scoring alone is done once more, by the main job's
own code, and timed. The memory of a step is what PyTorch's allocator says of it, operators' buffers included; beside it
stands how much the process grew in the run, which is more by what `malloc` keeps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from harness.plan.estimate import ModelPlan, Plan

SMALL = [
    "model=[transformer,mamba,ttt_linear]", "train.tokens=40000", "measure.documents=8", "measure.ngrams=[]",
    "measure.prefill_lengths=[]", "measure.decode_contexts=[]", "runtime=cpu", "hardware=here",
]  # fmt: skip
"""Three models of 0.7M parameters, 39 steps each; of the timings the training step alone."""
BARS = {"bytes": 0.15, "CPU s": 0.30}


class Compared(NamedTuple):
    """A line of the comparison."""

    model: str
    what: str
    unit: str
    predicted: float
    measured: float

    @property
    def missed(self) -> bool:
        """Whether the two differ by more than the unit's bar."""
        return abs(self.predicted / self.measured - 1) > BARS[self.unit]


def main() -> None:
    """Entry point; overrides come on top of `SMALL`; exit code 1 where a bar is missed."""
    from harness.cli import run_hydra
    from harness.plan.config import PlanConfig

    sys.argv[1:] = [*SMALL, *sys.argv[1:]]
    sys.exit(run_hydra("config", check, PlanConfig))


def check(composed: DictConfig) -> int:
    """Plan, run, compare, print."""
    from rich.console import Console
    from rich.table import Table

    from harness.plan.config import to_plan
    from harness.plan.estimate import make_plan
    from harness.run import run

    with tempfile.TemporaryDirectory() as folder:
        config, options = to_plan(composed)
        config = dataclasses.replace(config, output=folder, folder=str(Path(folder, "run")))
        plan = make_plan(config, options)
        with contextlib.redirect_stdout(io.StringIO()):
            run(config)
        lines, grown = list(compared(plan)), growth(config.run_folder)
    table = Table(title=f"a plan and its run; bars: {', '.join(f'{bar:.0%} of {unit}' for unit, bar in BARS.items())}")
    for column in ("model", "what", "unit", "predicted", "measured", "difference"):
        table.add_column(column, justify="left" if column in ("model", "what", "unit") else "right")
    for line in lines:
        difference = f"{line.predicted / line.measured - 1:+.1%}{' missed' if line.missed else ''}"
        table.add_row(*line[:3], *(f"{value:,.4g}" for value in line[3:]), difference)
    Console(width=120).print(table)
    print(
        "growth of the process in a training step of the run:", ", ".join(f"{k} {v:,} bytes" for k, v in grown.items())
    )
    return int(any(line.missed for line in lines))


def compared(plan: Plan) -> Iterator[Compared]:
    """Memory of a step, training and scoring of each model, and the phase that holds the last two of all."""
    from harness.records import Finish, RecordStore, Training

    rows = {(row.kind, row.model): row.values for row in RecordStore(plan.config.run_folder)}
    total = 0.0
    for model in plan.models:
        training, pace = rows[Training.kind, model.name], model.pace
        assert isinstance(training, Training)
        assert pace is not None
        yield Compared(model.name, "memory of a step", "bytes", model.memory.step, _step_bytes(plan, model))
        yield Compared(model.name, "training", "CPU s", pace.training, training.cpu_seconds)
        yield Compared(model.name, "scoring", "CPU s", pace.scoring, _scoring_seconds(plan, model))
        total += pace.training + pace.scoring
    finish = rows[Finish.kind, ""]
    assert isinstance(finish, Finish)
    yield Compared("all", "train, gate, score", "CPU s", total, finish.cpu_parts["train, gate, score"])


def growth(run_folder: Path) -> dict[str, int | None]:
    """By model the bytes by which its process grew in a training step of the run."""
    from harness.records import RecordStore, TrainStep

    rows = ((row.model, row.values) for row in RecordStore(run_folder))
    return {model: values.peak_bytes for model, values in rows if isinstance(values, TrainStep)}


def _step_bytes(plan: Plan, model: ModelPlan) -> int:
    from harness.measure.clock import CpuClock
    from harness.measure.scenarios import TrainStepScenario
    from harness.plan.shrink import with_weights

    baseline = with_weights(model.family, plan.corpus.vocab_size)
    scenario = TrainStepScenario(baseline, "cpu", plan.config.train, plan.config.runtime)
    scenario.prepare()
    return allocated(lambda: scenario.take_turn(CpuClock()))


def _scoring_seconds(plan: Plan, model: ModelPlan) -> float:
    """CPU seconds of every convention, of the model that the run has trained."""
    from harness.data.tokens import TokenStore
    from harness.jobs import Job
    from harness.session import ModelSession

    tokens = TokenStore.build(plan.config.data, Path(plan.config.output)).folder
    session = ModelSession(Job(model.name, 0, model.family, plan.config, "cpu", tokens), lambda told: None)
    session.obtain()
    start = time.process_time()
    for convention in plan.config.measure.conventions:
        getattr(session, convention)()
    return time.process_time() - start


def allocated(work: Callable[[], object]) -> int:
    """The most bytes at a time that PyTorch's allocator gave out while `work` ran, beyond what it held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiled.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    return max(itertools.accumulate(size for _, size in sorted(changes, key=lambda change: change[0])))


if __name__ == "__main__":
    main()
