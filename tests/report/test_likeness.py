"""Models that differ in what a comparison must hold equal are refused by name, or drawn with a dagger if allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.help import FOOTER
from harness.records import PositionCurve, Prefill, Record, RecordStore, Training, TrainStep
from harness.report.__main__ import main
from harness.report.collect import Run, collect
from harness.report.likeness import KEYS, require_alike
from harness.report.style import looks
from tests.report.sample import build

Change = Callable[[Record], Record]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sample"), documents=6)


def changed(sample: Path, folder: Path, change: Change, model: str = "mamba") -> Path:
    """The sample with one model's rows changed."""
    (folder / "models").symlink_to(sample / "models")
    for record in RecordStore(sample):
        RecordStore(folder).append(change(record) if record.model == model else record)
    return folder


def conditions(**values: object) -> Change:
    return lambda r: dataclasses.replace(r, conditions=dataclasses.replace(r.conditions, **values))  # type: ignore[arg-type]


def provenance(**values: object) -> Change:
    return lambda r: dataclasses.replace(r, provenance=r.provenance | values)


def values_of(kind: type, **values: object) -> Change:
    def change(r: Record) -> Record:
        return (
            dataclasses.replace(r, values=dataclasses.replace(r.values, **values)) if isinstance(r.values, kind) else r
        )

    return change


def without_seed_one(r: Record) -> Record:
    return dataclasses.replace(r, seed=0)


CHANGES: dict[str, Change] = {
    "device": conditions(device="cuda"),
    "dtype": conditions(dtype="bfloat16"),
    "threads": conditions(threads=2),
    "compile": conditions(compile=True),
    "micro_batch": values_of(TrainStep, micro_batch=2),
    "activation_checkpointing": values_of(TrainStep, activation_checkpointing=True),
    "processor": provenance(hardware={"processor": "Another", "gpu": None}),
    "data_hash": provenance(data_hash="other"),
    "training_tokens": values_of(Training, tokens=5),
    "training_length": values_of(Training, train_length=5),
    "scored_bytes": values_of(PositionCurve, bytes=5),
    "seeds": without_seed_one,
}


def test_every_key_has_its_planted_difference_and_is_named_in_the_help() -> None:
    assert set(CHANGES) == set(KEYS)
    assert all(key in FOOTER for key in KEYS)


def test_a_comparison_of_like_with_like_is_left_as_it_is(sample: Path) -> None:
    run = collect([sample])
    same, note = require_alike(run, [])
    assert note == ""
    assert same.models == run.models


@pytest.mark.parametrize("key", KEYS)
def test_what_differs_is_refused_by_name_and_marked_if_allowed(sample: Path, tmp_path: Path, key: str) -> None:
    run = collect([changed(sample, tmp_path, CHANGES[key])])
    with pytest.raises(ValueError, match=rf"models differ in {key} \(.*mamba.*allow_unlike=\[{key}\]") as error:
        require_alike(run, [])
    assert "\n" not in str(error.value)
    marked, note = require_alike(run, [key])
    assert marked.models == ["transformer", "mamba†", "ttt_linear", "ttt_mlp"]
    assert key in note
    assert "mamba" in note


def test_a_failed_seed_is_not_a_missing_one(sample: Path, tmp_path: Path) -> None:
    def failed(r: Record) -> Record:
        return dataclasses.replace(r, values=None, status="crashed") if r.seed == 1 else r

    _, note = require_alike(collect([changed(sample, tmp_path, failed)]), [])
    assert note == ""


def test_what_a_row_cannot_say_is_no_difference(sample: Path, tmp_path: Path) -> None:
    """A loaded model knows no training tokens, one that ran out of memory has no conditions to compare."""

    def lost(r: Record) -> Record:
        values = None if isinstance(r.values, Training | Prefill) else r.values
        return conditions(dtype="?")(dataclasses.replace(r, values=values)) if values is None else r

    assert require_alike(collect([changed(sample, tmp_path, lost)]), [])[1] == ""


def test_a_dagger_keeps_the_look() -> None:
    assert looks(["mamba†", "mine†"])["mamba†"] == looks(["mamba", "mine"])["mamba"]
    assert looks(["mamba†", "mine†"])["mine†"] == looks(["mamba", "mine"])["mine"]


@pytest.mark.usefixtures("bare_figures")
def test_the_command_refuses_and_draws(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(sample, tmp_path, CHANGES["dtype"])
    assert main([str(folder)]) == 2
    assert "models differ in dtype" in capsys.readouterr().err
    assert main([str(folder), "allow_unlike=[sizes]"]) == 2
    assert "no such key sizes; choose from device" in capsys.readouterr().err
    assert main([str(folder), "allow_unlike=[dtype]"]) == 0
    summary = (folder / "report" / "summary.md").read_text()
    assert "| mamba† |" in summary
    assert summary.count("† Not like for like: dtype (float32: transformer, ttt_linear, ttt_mlp; bfloat16: mamba).") > 5


def test_all_differences_are_named_at_once(sample: Path, tmp_path: Path) -> None:
    def both(r: Record) -> Record:
        return CHANGES["threads"](CHANGES["dtype"](r))

    run: Run = collect([changed(sample, tmp_path, both)])
    with pytest.raises(ValueError, match=r"allow_unlike=\[dtype,threads\]"):
        require_alike(run, ["dtype"])
