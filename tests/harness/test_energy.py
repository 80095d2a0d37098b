"""Joules a token, by a fake board whose counter and clock move only when the model works."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch

from baselines.interface import SequenceModel
from harness.config import RunConfig
from harness.jobs import Shape
from harness.measure.config import MeasureConfig
from harness.measure.energy import board_joules, joules_per_token
from harness.measure.scenarios import DecodeScenario, PrefillScenario
from harness.measure.stand import Stand


class Board(ModuleType):
    """Draws 100 J a step and 1,000 a longer call, which take a tenth of a second and a second."""

    def __init__(self, counts: bool = True) -> None:
        super().__init__("pynvml")
        self.NVMLError, self.counts = RuntimeError, counts
        self.now, self.millijoules = 0.0, 5_000_000
        self.asked: list[str] = []

    def watch(self, baseline: SequenceModel) -> None:
        baseline.model.register_forward_hook(self._tick, with_kwargs=True)

    def _tick(self, module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, object], out: object) -> None:
        seconds = 1.0 if args[0].shape[1] > 1 else 0.1
        self.now += seconds
        self.millijoules += int(1_000_000 * seconds)

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return self.millijoules


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Board]:
    """Makes a board the one that NVML tells of."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"abc-{index}"))

    def plug(counts: bool = True) -> Board:
        made = Board(counts)
        monkeypatch.setitem(sys.modules, "pynvml", made)
        return made

    return plug


def test_the_counter_is_that_of_this_process_gpu_in_joules(board: Callable[..., Board]) -> None:
    found = board()
    read = board_joules("cuda")
    assert read is not None
    assert read() == 5000.0
    assert found.asked == ["GPU-abc-0"]


def test_where_nothing_is_counted_there_is_none(board: Callable[..., Board], monkeypatch: pytest.MonkeyPatch) -> None:
    board(counts=False)
    assert board_joules("cuda") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert board_joules("cuda") is None
    assert board_joules("cpu") is None


def test_a_prefills_joules_are_shared_by_its_tokens(board: Callable[..., Board], gru: SequenceModel) -> None:
    found = board()
    found.watch(gru)
    scenario = PrefillScenario(gru, "cpu", batch=2, length=5)
    scenario.prepare()
    read = board_joules("cuda")
    assert read is not None
    joules = joules_per_token(scenario.repeat, read, 3.0, torch.cuda.synchronize, lambda: found.now)
    assert joules == pytest.approx(1000 / (2 * 5))


def test_reading_the_context_is_no_part_of_a_steps_joules(board: Callable[..., Board], gru: SequenceModel) -> None:
    """Fault: the prefill counted as a token, here in energy."""
    found = board()
    found.watch(gru)
    scenario = DecodeScenario(gru, "cpu", batch=2, length=9, tokens=3)
    scenario.prepare()
    scenario.state = None  # as on a GPU: the context is read anew
    read = board_joules("cuda")
    assert read is not None
    joules = joules_per_token(scenario.repeat, read, 1.0, torch.cuda.synchronize, lambda: found.now)
    assert joules == pytest.approx(100 / 2)


def test_work_that_ends_before_the_counter_moves_tells_nothing(gru: SequenceModel) -> None:
    ticks = iter(range(99))
    assert (
        joules_per_token(lambda go_on: int(go_on()), lambda: 1.0, 1.0, lambda: None, lambda: 0.1 * next(ticks)) is None
    )


def test_it_is_kept_in_the_row(
    board: Callable[..., Board], gru: SequenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = board()
    found.watch(gru)
    monkeypatch.setattr(joules_per_token, "__defaults__", (lambda: found.now,))
    stand, shape = Stand(gru, gru, RunConfig(measure=MeasureConfig(seconds=2.0)), "cuda"), Shape("prefill", 5, 1)
    stand.scenarios[shape] = PrefillScenario(gru, "cpu", 1, 5)
    stand.scenarios[shape].prepare()
    assert stand.values(shape).joules_per_token == pytest.approx(1000 / 5)
