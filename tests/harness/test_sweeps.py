"""Sweeps by Hydra's launchers: jobs in other processes, whose seeds share a run folder and whose failures come back."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main, run_hydra
from harness.comparison import Comparison
from harness.config import RunConfig
from harness.locks import hold
from harness.records import RecordStore, Training
from harness.run import run
from harness.timing import Timing
from tests.harness.sweep_job import leaves_a_mark

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("launcher", "seeds", "code", "said"),
    [
        ("joblib", "0,1", 1, "error: a job of the sweep failed; its output says why\n"),
        ("joblib", "0,2", 2, "error: seed is 2: must be another\n"),
        ("basic", "2,1", 2, "error: seed is 2: must be another\n"),
        ("nothing", "0", 2, "error: hydra/launcher=nothing: not installed; pip install 'ttt-bench[sweep]'\n"),
    ],
)
def test_the_launcher_runs_every_job_and_tells_how_they_ended(
    launcher: str,
    seeds: str,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["harness", f"seed={seeds}", f"output={tmp_path}", "--multirun", f"hydra/launcher={launcher}"]
    )
    assert run_hydra("config", leaves_a_mark) == code
    assert capfd.readouterr().err.endswith(said)
    if launcher != "nothing":
        ran = {(tmp_path / seed).read_text() for seed in seeds.split(",")}
        assert (str(os.getpid()) in ran) == (launcher == "basic")


def test_seeds_swept_beside_each_other_gather_in_one_folder(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By submitit, whose executor `local` stands for Slurm: every job is a process that a file tells what to do."""
    overrides = [
        "model=[gru]", "debug=smoke", "data=folder", f"data.path={corpus}", "data.test_fraction=0.3", "measure=quality",
        "measure.conventions=[position]", "runtime.workers=1", f"output={tmp_path}",
    ]  # fmt: skip
    sweep = ["--multirun", "seed=0,1", "hydra/launcher=submitit_local"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["harness", *overrides, *sweep])
    with pytest.raises(SystemExit, match="0"):
        main()
    (folder,) = (tmp_path / "runs").glob("quickstart-*")
    trained = {row.seed: row.values for row in RecordStore(folder) if row.kind == Training.kind}
    assert set(trained) == {0, 1}
    assert "the mean of 2 seeds" in (folder / "report" / "report.html").read_text()


class Refused(Exception):
    pass


def refuse() -> None:
    raise Refused


def free(path: Path, shared: bool) -> bool:
    try:
        with hold(path, shared=shared, otherwise=refuse):
            return True
    except Refused:
        return False


def test_a_lock_is_shared_or_held_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path, shared=True):
        assert (free(path, shared=True), free(path, shared=False)) == (True, False)
    with hold(path):
        assert (free(path, shared=True), free(path, shared=False)) == (False, False)
    assert free(path, shared=False)


def test_runs_train_beside_each_other_and_time_alone(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.size = dataclasses.replace(config.size, parameters=5728)
    config.measure.max_length = 128
    others_may: dict[str, bool] = {}

    def note(part: str) -> Callable[[Any], None]:
        def noted(self: Any) -> None:
            (path,) = Path(config.output).glob(".timing-*")
            others_may[part] = free(path, shared=True)

        return noted

    monkeypatch.setattr(Comparison, "quality", note("quality"))
    monkeypatch.setattr(Timing, "run", note("timing"))
    monkeypatch.setattr("harness.run.report", lambda folder, console, allow_unlike: folder)
    assert run(config) == 0
    assert others_may == {"quality": True, "timing": False}
