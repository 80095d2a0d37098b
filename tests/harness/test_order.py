"""Which model begins: the one that trains longest, found out by a step of each where that is worth it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from harness.comparison import Comparison
from harness.config import RunConfig
from harness.data.tokens import TokenStore
from harness.jobs import Job
from harness.progress import Display
from harness.session import ModelSession
from harness.worker import Outcome

Order = Callable[[list[str], int, int], tuple[list[str], list[str]]]
COSTS = {"short": 1.0, "long": 9.0, "middle": 4.0}


class Stub:
    """A worker that knows what its model costs, or that fails to find out."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked = name, asked

    def ask(self, task: str) -> None:
        assert task == "training_cost"
        self.asked.append(self.name)

    def outcome(self) -> Outcome:
        return Outcome(COSTS[self.name]) if self.name in COSTS else Outcome(status="oom")

    def call(self, task: str) -> Outcome:
        return Outcome(0.0)

    def close(self) -> None:
        self.asked.append(f"{self.name} closed")


@pytest.fixture
def order(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Order:
    """The order of models with so many steps and places, and what was asked of their workers."""
    monkeypatch.setattr("harness.comparison.server_context", lambda: None)
    tokens, gru = TokenStore.build(config.data, tmp_path), config.model["gru"]

    def find_order(names: list[str], steps: int, places: int) -> tuple[list[str], list[str]]:
        config.model = dict.fromkeys(names, gru)
        config.train = dataclasses.replace(config.train, tokens=steps * config.train.tokens_per_step)
        config.runtime = dataclasses.replace(config.runtime, workers=places)
        comparison = Comparison(config, "cpu", tokens, Display(Console(quiet=True)))
        asked: list[str] = []
        comparison.workers = {name: Stub(name, asked) for name in names}  # type: ignore[misc]
        todo = {name: comparison._missing(job) for name, job in comparison.jobs.items()}
        return comparison._longest_first(todo), asked

    return find_order


def test_the_longest_begins_and_floors_come_last(order: Order) -> None:
    found, asked = order(["short", "long", "middle"], 100, 2)
    assert found == ["long", "middle", "short", "3-gram", "4-gram"]
    assert asked == ["short", "long", "middle"]


def test_what_cannot_be_weighed_is_let_go_and_tried_as_the_last_model(order: Order) -> None:
    found, asked = order(["unknown", "short", "long"], 100, 2)
    assert found == ["long", "short", "unknown", "3-gram", "4-gram"]
    assert "unknown closed" in asked


@pytest.mark.parametrize(("steps", "places"), [(99, 2), (100, 1), (100, 3)])
def test_nothing_is_weighed_where_it_gains_nothing(order: Order, steps: int, places: int) -> None:
    found, asked = order(["short", "long", "middle"], steps, places)
    assert found == ["short", "long", "middle", "3-gram", "4-gram"]
    assert not asked


def test_the_cost_is_that_of_every_step(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = TokenStore.build(config.data, tmp_path)
    session = ModelSession(Job("gru", 0, config.model["gru"], config, "cpu", tokens.folder), lambda told: None)
    monkeypatch.setattr("harness.session.TrainStepScenario.turn", lambda self, clock: [0.5])
    assert session.training_cost() == 0.5 * config.train.steps
    assert not config.run_folder.exists()
