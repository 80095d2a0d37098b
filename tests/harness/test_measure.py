"""Timing under a fake clock, memory, and the position curve."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from baselines.config import Unsupported
from baselines.interface import Encoded, SequenceModel, bytes_as_tokens
from harness.config import RunConfig
from harness.data.tokens import TokenDocument
from harness.jobs import Shape, shapes
from harness.measure.clock import CudaClock, WallClock
from harness.measure.config import MeasureConfig
from harness.measure.memory import peak_bytes
from harness.measure.position import position_curve
from harness.measure.scenarios import (
    DecodeScenario,
    FirstTokenScenario,
    PrefillScenario,
    Scenario,
    TrainStepScenario,
)
from harness.measure.stand import Stand
from harness.runtime import RuntimeConfig
from harness.train.config import TrainConfig


class WorkClock:
    """A clock that moves only when the model works: one second a call, ten a call of more than one token."""

    def __init__(self, baseline: SequenceModel) -> None:
        self.now, self.calls = 0.0, 0
        baseline.model.register_forward_hook(self._tick, with_kwargs=True)

    def _tick(self, module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, object], out: object) -> None:
        self.now += 10.0 if args[0].shape[1] > 1 else 1.0
        self.calls += 1

    def mark(self) -> float:
        return self.now

    def seconds(self, marks: list[float]) -> list[float]:
        return WallClock().seconds(marks)


def test_decode_times_each_token_and_never_the_prefill(gru: SequenceModel) -> None:
    clock = WorkClock(gru)
    scenario = DecodeScenario(gru, "cpu", batch=2, length=9, tokens=5)
    scenario.warm()
    assert scenario.take_turn(clock) == [1.0] * 5
    assert scenario.take_turn(clock) == [1.0] * 5
    values = scenario.values()
    assert values.seconds == [1.0] * 10
    assert values.context == 9
    assert values.state_bytes == 2 * 16 * 4
    assert values.flops == 2 * gru.flops(9, "step")


def test_prefill_times_one_call_without_the_warm_up(gru: SequenceModel) -> None:
    clock = WorkClock(gru)
    scenario = PrefillScenario(gru, "cpu", batch=1, length=9)
    scenario.warm()
    before = clock.calls
    assert scenario.take_turn(clock) == [10.0]
    assert clock.calls == before + 1
    assert scenario.values().seconds == [10.0]


def test_the_first_token_is_one_call_from_the_prompt_on_the_host_to_a_token_on_the_host(gru: SequenceModel) -> None:
    """Faults: two calls inside one timer; a time that ends when the work is issued, before a user has anything."""
    clock = WorkClock(gru)
    scenario = FirstTokenScenario(gru, "cpu", batch=2, length=9)
    scenario.warm()
    before = clock.calls
    assert scenario.take_turn(clock) == [10.0]
    assert clock.calls == before + 1
    tokens = scenario._work()
    assert [type(token) for token in tokens] == [int, int]
    values = scenario.values()
    assert (values.batch, values.length, values.seconds, values.turns) == (2, 9, [10.0], 1)


@pytest.mark.parametrize(("host", "clock"), [(True, WallClock), (False, CudaClock)])
def test_what_ends_on_the_host_is_timed_by_the_wall_clock_on_a_gpu_too(host: bool, clock: type) -> None:
    stand, shape = Stand(None, None, RunConfig(), "cuda"), Shape("first_token", 9, 1)  # type: ignore[arg-type]
    stand.scenarios[shape] = SimpleNamespace(ends_on_host=host, take_turn=lambda clock: [clock])  # type: ignore[assignment]
    assert [type(used) for used in stand.turn(shape)] == [clock]
    assert FirstTokenScenario.ends_on_host
    assert not any(other.ends_on_host for other in (PrefillScenario, DecodeScenario, TrainStepScenario))


def every_scenario(model: SequenceModel) -> list[Scenario]:
    recipe = TrainConfig(tokens=1024, length=16, batch_size=2)
    return [
        PrefillScenario(model, "cpu", 1, 9), FirstTokenScenario(model, "cpu", 1, 9),
        DecodeScenario(model, "cpu", 1, 9, 3), TrainStepScenario(model, "cpu", recipe, RuntimeConfig()),
    ]  # fmt: skip


def test_inputs_are_made_before_the_clock_starts(gru: SequenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: random inputs made inside the timed loop."""
    clock = WorkClock(gru)
    made = Scenario.random_ids

    def slowly(scenario: Scenario, length: int) -> torch.Tensor:
        clock.now += 1000.0
        return made(scenario, length)

    monkeypatch.setattr(Scenario, "random_ids", slowly)
    for scenario in every_scenario(gru):
        scenario.prepare()
        assert max(scenario.take_turn(clock) + scenario.take_turn(clock)) <= 10.0


def test_turns_are_kept_apart_and_none_holds_marks_of_the_one_before(gru: SequenceModel) -> None:
    """Fault: marks kept from turn to turn, so that the next turn's prefill counts as a token."""
    clock = WorkClock(gru)
    for scenario, calls in zip(every_scenario(gru), (1, 1, 3, 1), strict=True):
        scenario.prepare()
        turns = [scenario.take_turn(clock) for _ in range(4)]
        assert turns == [turns[0]] * 4
        assert len(turns[0]) == calls
        values = scenario.values()
        assert (values.turns, values.drift, values.trend_p) == (4, 1.0, pytest.approx(1.0))


class FakeEvent:
    """A CUDA event: what is recorded and waited for, in order."""

    log: ClassVar[list[str]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.number = len(self.log)
        self.log.append("mark")

    def synchronize(self) -> None:
        self.log.append(f"wait for {self.number}")

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1000.0 * (other.number - self.number)


def test_on_a_gpu_nothing_waits_until_all_steps_are_issued(gru: SequenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a synchronisation after every step, which hides what the device could do."""
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("synchronised"))
    monkeypatch.setattr(FakeEvent, "log", [])
    scenario = DecodeScenario(gru, "cpu", batch=1, length=9, tokens=3)
    scenario.prepare()
    assert scenario.take_turn(CudaClock()) == [1.0] * 3
    assert FakeEvent.log == ["mark"] * 4 + ["wait for 3"]


def test_decoding_goes_by_batch(gru: SequenceModel) -> None:
    assert [shape for shape in shapes(RunConfig(measure=MeasureConfig(decode_contexts=[8, 16], decode_batches=[1, 4])))
            if shape.kind == "decode"] == [
        Shape("decode", 8, 1), Shape("decode", 16, 1), Shape("decode", 8, 4), Shape("decode", 16, 4),
    ]  # fmt: skip
    scenario = DecodeScenario(gru, "cpu", batch=4, length=9, tokens=2)
    scenario.prepare()
    scenario.take_turn(WallClock())
    values = scenario.values()
    assert (values.batch, values.state_bytes, values.flops) == (4, 4 * 16 * 4, 4 * gru.flops(9, "step"))


def test_the_state_is_counted_on_the_object(gru: SequenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the size of the state declared by hand, and wrong."""
    prefill = gru.prefill
    monkeypatch.setattr(
        gru, "prefill", lambda ids, state=None, keep=1: (prefill(ids)[0], {"h": prefill(ids)[1], "kept": ids.clone()})
    )
    scenario = PrefillScenario(gru, "cpu", batch=2, length=9)
    scenario.prepare()
    assert scenario.values().state_bytes == 2 * 16 * 4 + 2 * 9 * 8


def test_nothing_is_asked_beyond_a_models_limit_and_all_within_it_is_fed(gru: SequenceModel) -> None:
    """Fault: a model that stops early at its last position looks faster than it is."""
    stand = Stand(gru, gru, RunConfig(measure=MeasureConfig(decode_tokens=4)), "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(gru), "context_limit", 12)
        for kind, length in (("prefill", 13), ("first_token", 13), ("decode", 9)):
            with pytest.raises(Unsupported, match="13 tokens: the model's context ends at 12"):
                stand.scenario(Shape(kind, length, 1))
        fed: list[int] = []
        gru.model.register_forward_hook(lambda _m, args, _k, _o: fed.append(args[0].numel()), with_kwargs=True)
        for kind, length, tokens in (("prefill", 12, 12), ("first_token", 12, 12), ("decode", 8, 4)):
            scenario = stand.scenario(Shape(kind, length, 1))
            scenario.prepare()
            fed.clear()
            scenario.take_turn(WallClock())
            assert sum(fed) == tokens


def test_a_timed_training_step_leaves_the_weights(gru: SequenceModel) -> None:
    before = [p.clone() for p in gru.model.parameters()]
    clock = WorkClock(gru)
    scenario = TrainStepScenario(gru, "cpu", TrainConfig(tokens=1024, length=16, batch_size=2), RuntimeConfig())
    scenario.warm()
    assert scenario.take_turn(clock) == [10.0]
    assert all(torch.equal(a, b) for a, b in zip(before, gru.model.parameters(), strict=True))
    assert not gru.model.training


def test_peak_memory_is_that_of_the_call() -> None:
    size = 64 * 2**20
    leavings = [torch.ones(size // 4) for _ in range(2)]
    del leavings
    peak = peak_bytes(lambda: torch.ones(size // 4), "cpu")
    assert peak is not None
    assert 0.95 * size <= peak < 1.2 * size
    assert peak_bytes(lambda: None, "cpu") < size / 8  # type: ignore[operator]


def test_on_a_gpu_the_peak_of_earlier_calls_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the allocator's peak carried from one measurement of a process to the next."""
    memory = {"now": 70, "peak": 1000}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: memory.update(peak=memory["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: memory["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: memory["peak"])
    assert peak_bytes(lambda: memory.update(peak=max(memory["peak"], 110)), "cuda") == 40


def document(name: str, text: bytes) -> TokenDocument:
    return TokenDocument(name, np.frombuffer(text, np.uint8))


def test_the_curve_keeps_every_position_of_every_document(tmp_path: Path) -> None:
    documents = [document("a", b"abcdef"), document("b", b"xyz")]
    told: list[tuple[int, int]] = []
    curve = position_curve(
        lambda rows, targets: rows[:, -targets:] / 2,
        bytes_as_tokens,
        documents,
        5,
        4,
        tmp_path / "x" / "nll.parquet",
        tmp_path,
        lambda *t: told.append(t),
    )
    assert (curve.documents, curve.tokens, curve.max_length, curve.train_length) == (2, 6, 5, 4)
    table = pq.read_table(tmp_path / curve.nll_file).to_pydict()
    assert table["document"] == ["a", "b"]
    assert table["nll"] == [[b / 2 for b in b"bcde"], [b / 2 for b in b"yz"]]
    assert table["target_bytes"] == [[1, 1, 1, 1], [1, 1]]
    assert told == [(5, 8), (8, 8)]


def test_a_nan_is_not_averaged_away(tmp_path: Path) -> None:
    def score(rows: np.ndarray, targets: int) -> np.ndarray:
        return np.where(np.arange(targets) == 2, np.nan, 1.0)[None]

    documents = [document("a", b"abcdef")]
    with pytest.raises(ArithmeticError, match="NLL of a is not finite at position 2"):
        position_curve(score, bytes_as_tokens, documents, 9, None, tmp_path / "n", tmp_path, lambda *_: None)


def test_a_tokenizer_reads_the_same_bytes_and_its_tokens_keep_their_sizes(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def in_twos(text: bytes) -> Encoded:
        pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
        return Encoded(np.array([pair[0] for pair in pairs]), np.array([len(pair) for pair in pairs]))

    def score(rows: np.ndarray, targets: int) -> np.ndarray:
        return rows[:, -targets:] / 2

    documents = [document("a", b"abcdefgh"), document("b", b"xyz")]
    path = tmp_path / "nll.parquet"
    curve = position_curve(score, in_twos, documents, 7, None, path, tmp_path, lambda *t: told.append(t))
    assert (curve.documents, curve.tokens, curve.bytes) == (2, 4, 10)
    table = pq.read_table(path).to_pydict()
    assert table["nll"] == [[b / 2 for b in b"ceg"], [ord("z") / 2]]
    assert table["target_bytes"] == [[2, 2, 1], [1]]
    assert table["first_bytes"] == [2, 2]
    assert told == [(7, 10), (10, 10)]
