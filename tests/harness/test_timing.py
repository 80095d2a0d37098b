"""Whose turn it is, and whether the machine is at rest: on a fake machine whose clock moves only when someone works."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness import neighbours
from harness.comparison import Comparison
from harness.config import RunConfig
from harness.data.tokens import TokenStore
from harness.jobs import Shape, shapes
from harness.measure.config import MeasureConfig
from harness.neighbours import Neighbours
from harness.progress import Display
from harness.records import FirstToken, Prefill, Record, RecordStore, TrainStep
from harness.timing import Timing
from harness.worker import Outcome, Worker, serve

SPEED = {"quick": 0.25, "slow": 1.0}
CORES = 2
VALUES = {
    values.kind: values
    for values in (TrainStep(2, 32, [1.0], None, 0), Prefill(1, 16, [1.0], None, 0, 0), FirstToken(1, 16, [1.0], 0))
}


class Machine:
    """Two cores; `others` of them work for others, by the time of day; models say what they use."""

    def __init__(self, others: Callable[[float], float] = lambda now: 0.0) -> None:
        self.others, self.time, self.used, self.of_others, self.slept = others, 0.0, 0.0, 0.0, 0.0
        self.calls: list[tuple[str, str, Shape]] = []

    def pass_time(self, seconds: float, work: bool) -> None:
        self.of_others += seconds * self.others(self.time)
        self.used += seconds * work
        self.time += seconds

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.pass_time(seconds, work=False)


class Stub:
    """A worker whose model takes so long a turn, or fails in one."""

    process = SimpleNamespace(is_alive=lambda: True)

    def __init__(self, name: str, machine: Machine, fails_at: int = 0) -> None:
        self.name, self.machine, self.fails_at, self.turns = name, machine, fails_at, 0

    def call(self, task: str, *arguments: Any) -> Outcome:
        if task in ("kernel_path", "cpu_seconds"):
            return Outcome("a path" if task == "kernel_path" else 0.0)
        self.machine.calls.append((task, self.name, arguments[0]))
        if task == "values":
            return Outcome(VALUES[arguments[0].kind])
        self.machine.pass_time(50.0 if task == "warm" else SPEED[self.name], work=True)
        self.turns += task == "turn"
        if self.fails_at and self.turns == self.fails_at:
            return Outcome(status="oom", message="no room")
        return Outcome([SPEED[self.name] / 2] * 2 if task == "turn" else None)

    def close(self) -> None:
        pass


Make = Callable[..., Timing]


@pytest.fixture
def timing(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The timing of two gated models on a machine, two prefill lengths and a step of training."""
    monkeypatch.setattr("harness.comparison.server_context", lambda: None)
    monkeypatch.setattr("harness.timing.os.sched_getaffinity", lambda pid: set(range(CORES)))
    tokens = TokenStore.build(config.data, tmp_path)
    config.model = dict.fromkeys(SPEED, config.model["gru"])

    def make(machine: Machine, gated: tuple[str, ...] = ("quick", "slow"), fails_at: int = 0, **measure: Any) -> Timing:
        config.measure = MeasureConfig(
            prefill_lengths=[16, 32], decode_contexts=[], repeats=3, seconds=2.0, ngrams=[], **measure
        )
        config.run_folder.mkdir(parents=True, exist_ok=True)
        comparison = Comparison(config, "cpu", tokens, Display(Console(quiet=True)))
        for name in gated:
            comparison.rows["gate", name, 0, 0] = Record("gate", name, "gru", 0)
        comparison.workers = {  # type: ignore[assignment]
            name: Stub(name, machine, fails_at if name == "slow" else 0) for name in gated
        }
        found = Timing(comparison)
        found.neighbours = Neighbours(
            lambda: machine.used, lambda: machine.used + machine.of_others, lambda: machine.time, machine.sleep
        )
        return found

    return make


def rows(timing: Timing) -> list[Record]:
    return list(RecordStore(timing.config.run_folder))


def test_every_shape_of_every_model_is_warmed_before_any_is_timed(timing: Make) -> None:
    """Fault: only the first shape warmed, so that autotuning of later ones lands in their times."""
    machine = Machine()
    found = timing(machine)
    found.run()
    tasks = [task for task, _, _ in machine.calls]
    warmed = {(name, shape) for task, name, shape in machine.calls[: tasks.index("turn")] if task == "warm"}
    assert warmed == {(name, shape) for name in SPEED for shape in shapes(found.config)}
    assert "warm" not in tasks[tasks.index("turn") :]


def test_models_take_turns_until_each_had_enough_turns_and_seconds(timing: Make) -> None:
    """Fault: one model timed after the other, so that drift of the machine looks like a difference between models."""
    machine = Machine()
    found = timing(machine)
    found.run()
    first = shapes(found.config)[0]
    order = [name for task, name, shape in machine.calls if task == "turn" and shape == first]
    assert order == ["quick", "slow"] * 8  # eight quick turns of 0.25 s make two seconds
    assert [row.kind for row in rows(found)] == ["train_step"] * 2 + ["prefill"] * 4 + ["first_token"] * 4


def test_what_did_not_pass_the_gate_is_not_timed(timing: Make) -> None:
    """Fault: speed of random or broken weights beside the quality of trained ones."""
    machine = Machine()
    timing(machine, gated=("slow",)).run()
    assert {name for _, name, _ in machine.calls} == {"slow"}


def test_a_model_that_fails_in_its_turn_leaves_a_row_and_the_others_go_on(timing: Make) -> None:
    machine = Machine()
    found = timing(machine, fails_at=2)
    found.run()
    status = [(row.model, row.status) for row in rows(found) if row.kind == "train_step"]
    assert status == [("slow", "oom"), ("quick", "ok")]
    assert [name for task, name, shape in machine.calls if task == "turn"][:5] == ["quick", "slow"] * 2 + ["quick"]


def test_rows_say_what_they_ran_on_and_how_busy_the_machine_was(timing: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: graphed or fused code beside eager code, or a shared machine beside a quiet one, and no row says so."""
    loads = iter(range(99))
    monkeypatch.setattr("harness.timing.os.getloadavg", lambda: (float(next(loads)), 0.0, 0.0))
    found = timing(Machine(lambda now: 0.5))
    found.run()
    conditions = rows(found)[0].conditions
    assert (conditions.load_average, conditions.load_average_after) == (0.0, 1.0)
    assert conditions.others_load == pytest.approx(0.5)
    assert conditions.kernel_path == "a path"


def test_nothing_is_timed_while_others_keep_the_cores_busy_and_a_later_run_fills_it_in(timing: Make) -> None:
    busy = Machine(lambda now: 1.9)
    found = timing(busy)
    found.run()
    assert not [task for task, _, _ in busy.calls if task == "turn"]
    assert {(row.status, row.message) for row in rows(found)} == {
        ("skipped", "not timed: others keep more than 1 of 2 cores busy (measure.max_load);"
                    " the same command fills this in when they are done")
    }  # fmt: skip
    assert rows(found)[0].conditions.others_load == pytest.approx(1.9)
    assert 60 <= busy.slept <= 60 + 2 * (1 + len(shapes(found.config)))
    again = timing(Machine())
    again.run()
    assert {row.status for row in again.comparison.rows.values()} == {"ok"}
    idle = Machine()
    timing(idle).run()
    assert not idle.calls


def test_it_waits_for_calm_and_then_goes_on(timing: Make) -> None:
    machine = Machine(lambda now: 1.9 if now < 520 else 0.2)  # warm-up ends after 500 seconds
    found = timing(machine)
    found.run()
    assert 520 <= 500 + machine.slept <= 524
    assert {row.status for row in rows(found)} == {"ok"}


def test_what_the_job_itself_has_just_used_is_no_neighbour(timing: Make) -> None:
    """Fault: the load average still holds one's own training, so that a job waits for itself."""
    machine = Machine()
    machine.pass_time(600, work=True)
    timing(machine).run()
    assert machine.slept == neighbours.SAMPLE_SECONDS


@pytest.mark.parametrize(("allowed", "turns"), [(2.0, True), (1.8, False), (math.inf, True)])
def test_the_bound_can_be_set_and_without_one_nobody_looks(timing: Make, allowed: float, turns: bool) -> None:
    machine = Machine(lambda now: 1.9)
    timing(machine, max_load=allowed).run()
    assert any(task == "turn" for task, _, _ in machine.calls) == turns
    assert (machine.slept == 0) == (allowed >= CORES)


def test_a_model_on_all_cores_leaves_half_a_core_to_the_others(timing: Make) -> None:
    found = timing(Machine())
    assert found.bound == 1.0
    found.config.runtime = dataclasses.replace(found.config.runtime, threads=2)
    assert found.bound == 0.5


def test_the_work_of_the_cores_is_read_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 100 20 30 4000 500 6 7 8 90 9\ncpu1 100 0 0 1 1 0 0 0 0 0\nintr 1\n")
    monkeypatch.setattr(neighbours, "_STAT", stat)
    monkeypatch.setattr("harness.neighbours.os.sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr("harness.neighbours.os.sysconf", lambda name: 100)
    assert neighbours.busy_seconds() == pytest.approx(1.71)
    stat.unlink()
    assert neighbours.busy_seconds() is None
    unknown = Neighbours(lambda: 0.0, lambda: None)
    assert unknown.look() is None
    assert unknown.calm(0.0, lambda others: None)


def test_who_waits_for_a_worker_leaves_the_core_to_it() -> None:
    """Fault: a parent that asks again and again whether its worker is done takes a core from it."""
    parent = Worker.__new__(Worker)
    parent.connection, child = multiprocessing.Pipe()

    def answer() -> None:
        child.recv()
        time.sleep(0.3)
        child.send(Outcome(1))

    thread = threading.Thread(target=answer)
    thread.start()
    before = time.thread_time()
    assert parent.call("turn").value == 1
    assert time.thread_time() - before < 0.05
    thread.join()


def test_a_worker_without_a_turn_sleeps(tmp_path: Path) -> None:
    _parent, child = multiprocessing.Pipe()
    job = SimpleNamespace(folder=tmp_path, family=None)
    process = multiprocessing.get_context("fork").Process(target=serve, args=(child, job, 1), daemon=True)
    process.start()
    child.close()

    def ticks() -> int:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    time.sleep(0.3)
    before = ticks()
    time.sleep(0.4)
    assert ticks() - before <= 2
    assert process.is_alive()
    process.kill()
    process.join()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode_batches": [1, 0]}, r"measure.decode_batches is \[1, 0\]: batches must be at least 1"),
        ({"prefill_lengths": [0]}, r"measure.prefill_lengths is \[0\]: lengths must be at least 1"),
        ({"max_load": -1.0}, r"measure.max_load is -1.0: must be a number of cores, 0 or more, or null"),
        ({"max_load": math.nan}, "measure.max_load is nan"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeasureConfig(**options)
