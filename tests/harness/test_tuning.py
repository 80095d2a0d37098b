"""Learning rates: the same for all and the best of a grid, told apart in rows and tables; chosen on training loss."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from harness.config import RunConfig
from harness.measure.config import MeasureConfig
from harness.records import Record, RecordStore, Training, Tuning
from harness.report.collect import collect
from harness.report.conditions import conditions, tuning
from harness.run import run
from harness.train.config import TrainConfig
from harness.tuning import choose, final_loss, grid


def finished(config: RunConfig, name: str, loss: list[float]) -> None:
    folder = config.run_folder / "seed0" / name / "checkpoint"
    folder.mkdir(parents=True)
    seen = [100 * (i + 1) for i in range(len(loss))]
    training = Training(10, seen[-1], 10, 32, seen, loss, 1.0, 1.0, "")
    (folder / "training.json").write_text(json.dumps(dataclasses.asdict(training)))


@pytest.fixture
def tuned(config: RunConfig) -> RunConfig:
    config.train = dataclasses.replace(config.train, rates=[0.0001, 0.003, 0.05])
    return config


def test_a_grid_is_the_shared_rate_and_the_others(tuned: RunConfig) -> None:
    found = grid(tuned, "gru")
    assert {name: at.train.learning_rate for name, at in found.items()} == {
        "gru": 0.003, "gru@0.0001": 0.0001, "gru@0.05": 0.05,
    }  # fmt: skip
    assert {at.run_folder for at in found.values()} == {tuned.run_folder}
    tuned.model["gru"].checkpoint = "somewhere"
    assert list(grid(tuned, "gru")) == ["gru"]


def test_the_lowest_loss_at_the_end_is_chosen(tuned: RunConfig) -> None:
    finished(tuned, "gru", [1.0] * 18 + [2.0, 3.0])
    finished(tuned, "gru@0.05", [9.0] * 18 + [2.0, 2.5])
    assert final_loss(tuned.run_folder / "seed0" / "gru" / "checkpoint") == 2.5
    values = choose(tuned, "gru")
    assert values == Tuning([0.003, 0.0001, 0.05], [2.5, math.inf, 2.25], "gru@0.05")


def test_rates_below_the_final_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.rates is \[1e-06\]: each must exceed train\.final_learning_rate"):
        TrainConfig(rates=[1e-6])


def rows(folder: Path, seed: int) -> dict[tuple[str, str], Record]:
    return {(row.kind, row.model): row for row in RecordStore(folder) if row.seed == seed}


@pytest.mark.usefixtures("bare_figures")
def test_both_rates_are_compared_and_told_apart(tuned: RunConfig) -> None:
    tuned.train = dataclasses.replace(tuned.train, tokens=1280)
    tuned.size = dataclasses.replace(tuned.size, parameters=5728)
    tuned.measure = MeasureConfig(
        max_length=128, conventions=["position"], ngrams=[2], prefill_lengths=[32], decode_contexts=[16],
        decode_tokens=2, repeats=1, seconds=0.0, max_load=math.inf,
    )  # fmt: skip
    assert run(tuned) == 0
    found = rows(tuned.run_folder, 0)
    trained = {model: row.values.learning_rate for (kind, model), row in found.items() if kind == "training"}  # type: ignore[union-attr]
    assert trained == {"gru": 0.003, "gru@0.05": 0.05}
    assert {model for kind, model in found if kind == "decode"} == {"gru", "gru@0.05"}
    choice = found["tuning", "gru"].values
    assert isinstance(choice, Tuning)
    assert choice.chosen == "gru@0.05"
    assert choice.losses[2] == min(choice.losses) < max(choice.losses) < math.inf
    assert "tune" in found["finish", ""].values.parts  # type: ignore[union-attr]

    gathered = collect([tuned.run_folder])
    assert gathered.models == ["gru", "gru@0.05"]
    (rates,) = [row for row in conditions(gathered).rows if row["condition"] == "learning rate"]
    assert (rates["gru"], rates["gru@0.05"]) == ("0.003 (same for all)", "0.05 (tuned)")
    table = tuning(gathered)
    assert table is not None
    assert table.rows[0]["0.0001"] == max(choice.losses)

    tuned.seed = 1
    assert run(tuned) == 0
    again = rows(tuned.run_folder, 1)
    assert ("tuning", "gru") not in again
    assert {model for kind, model in again if kind == "training"} == {"gru", "gru@0.05"}
    assert not (tuned.run_folder / "seed1" / "gru@0.0001").exists()
