"""The whole job on a tiny comparison: rows, survival of faults, resuming after kill -9, loading instead of training."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from baselines.registry import find
from harness.cli import main
from harness.config import RunConfig
from harness.measure.config import MeasureConfig
from harness.records import Decode, Finish, Record, RecordStore, Training
from harness.run import own_folder, run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(config: RunConfig) -> RunConfig:
    """Few tokens, few shapes."""
    config.train = dataclasses.replace(config.train, tokens=256)
    config.size = dataclasses.replace(config.size, parameters=5728)
    config.measure = MeasureConfig(
        max_length=128,
        conventions=["position", "fixed_target", "window"],
        targets=16,
        ngrams=[2],
        prefill_lengths=[32, 64],
        decode_contexts=[16],
        decode_tokens=2,
        decode_batches=[1],
        repeats=3,
        seconds=0.0,
        max_load=math.inf,
    )
    return config


def rows(config: RunConfig) -> dict[tuple[str, str, int], Record]:
    return {(row.kind, row.model, row.length): row for row in RecordStore(config.run_folder)}


def broken(fault: str) -> object:
    return find("tests.harness.broken").Config(family="tests.harness.broken", hidden_size=16, fault=fault)


def test_every_measurement_becomes_a_row_with_its_provenance(small: RunConfig) -> None:
    assert run(small) == 0
    found = rows(small)
    assert set(found) == {
        ("training", "gru", 0), ("gate", "gru", 0), ("position", "gru", 0), ("position", "2-gram", 0),
        ("fixed_target", "gru", 0), ("fixed_target", "2-gram", 0), ("window", "gru", 0), ("window", "2-gram", 0),
        ("train_step", "gru", 32), ("prefill", "gru", 32), ("prefill", "gru", 64), ("first_token", "gru", 32),
        ("first_token", "gru", 64), ("decode", "gru", 16),
        ("diagnostics", "gru", 0), ("finish", "", 0),
    }  # fmt: skip
    for row in found.values():
        assert row.status == "ok"
        assert row.provenance["config_hash"] == small.hash
        assert len(row.provenance["data_hash"]) == 64
        assert not any(value in str(row.provenance) for key, value in os.environ.items() if "TOKEN" in key and value)
    finish = found["finish", "", 0].values
    assert isinstance(finish, Finish)
    assert set(finish.cpu_parts) == set(finish.parts) == {"set-up", "train, gate, score", "timing"}
    assert sum(finish.cpu_parts.values()) == pytest.approx(finish.cpu_seconds)
    assert sum(finish.parts.values()) == pytest.approx(finish.wall_seconds)
    assert min(finish.cpu_parts.values()) > 0
    assert found["train_step", "gru", 32].batch == small.train.batch_size
    assert found["decode", "gru", 16].provenance["models"] == ["gru"]
    decode = found["decode", "gru", 16].values
    assert isinstance(decode, Decode)
    assert (decode.turns, len(decode.seconds)) == (3, 6)
    assert decode.drift is not None
    assert decode.joules_per_token is None
    assert found["prefill", "gru", 64].conditions.kernel_path == "torch"
    assert None not in (
        found["prefill", "gru", 64].conditions.load_average,
        found["prefill", "gru", 64].conditions.load_average_after,
    )


@pytest.mark.usefixtures("bare_figures")
def test_what_is_done_is_not_done_again(small: RunConfig) -> None:
    run(small)
    before = RecordStore(small.run_folder).path.read_text()
    run(small)
    added = RecordStore(small.run_folder).path.read_text().removeprefix(before)
    assert added.count("\n") == 1
    assert '"kind":"finish"' in added
    small.seed = 1
    run(small)
    assert {row.seed for row in RecordStore(small.run_folder)} == {0, 1}


@pytest.mark.usefixtures("bare_figures")
def test_faults_become_rows_and_the_comparison_goes_on(small: RunConfig) -> None:
    faults = ["unsupported", "crash", "oom", "nan", "acausal", "oom at 64"]
    small.model |= {fault.replace(" ", "_"): broken(fault) for fault in faults}
    assert run(small) == 1
    found = rows(small)
    status = {name: row.status for (kind, name, _), row in found.items() if kind == "training"}
    assert status == {
        "gru": "ok", "unsupported": "unsupported", "crash": "crashed", "oom": "oom", "nan": "nan",
        "acausal": "ok", "oom_at_64": "ok",
    }  # fmt: skip
    assert found["training", "unsupported", 0].message == "Unsupported: needs a quantum computer"
    assert "signal 11" in found["training", "crash", 0].message
    assert found["training", "oom", 0].message == "MemoryError: no room for the weights"
    assert found["gate", "acausal", 0].status == "failed"
    assert "causal: future changed" in found["gate", "acausal", 0].message
    assert ("position", "acausal", 0) not in found
    assert ("prefill", "acausal", 32) not in found
    assert found["prefill", "oom_at_64", 64].status == "oom"
    assert found["prefill", "oom_at_64", 32].status == "ok"
    assert found["decode", "oom_at_64", 16].status == "ok"
    assert found["decode", "gru", 16].status == "ok"


@pytest.mark.usefixtures("bare_figures")
def test_a_trained_checkpoint_is_loaded_and_scores_the_same(small: RunConfig, tmp_path: Path) -> None:
    run(small)
    checkpoint = small.run_folder / "seed0" / "gru" / "checkpoint"
    loaded = dataclasses.replace(small, model={}, folder=str(tmp_path / "loaded"))
    for name in ("one", "two"):
        loaded.model[name] = dataclasses.replace(small.model["gru"], checkpoint=str(checkpoint))
    assert run(loaded) == 0
    found = rows(loaded)
    assert found["loaded", "one", 0].values.parameters == 5728  # type: ignore[union-attr]
    assert not any(kind == Training.kind for kind, _, _ in found)
    assert found["position", "two", 0].values.train_length == 32  # type: ignore[union-attr]
    first = pd.read_parquet(small.run_folder / "seed0" / "gru" / "nll.parquet")
    again = pd.read_parquet(tmp_path / "loaded" / "seed0" / "two" / "nll.parquet")
    pd.testing.assert_frame_equal(first, again)


def command(small: RunConfig, output: str, *more: str) -> list[str]:
    folder = Path(str(small.data.path))
    overrides = ["model=[gru]", "debug=smoke", "data=folder", f"data.path={folder}", "data.test_fraction=0.3"]
    return [sys.executable, "-m", "harness", "--config-dir", "mine", *overrides, f"output={output}", *more]


@pytest.fixture
def at_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def processes_with(text: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if text in line]


def whole_job(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in this process, to its end."""
    monkeypatch.setattr(sys, "argv", arguments[2:])
    with pytest.raises(SystemExit, match="0"):
        main()


@pytest.mark.usefixtures("at_workplace", "bare_figures")
def test_killed_with_9_and_started_again_it_gives_the_same_perplexities(
    small: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = ["train.tokens=16000", "train.checkpoint_seconds=0.01", "train.log_every=5", "measure.timing=false"]
    whole_job(command(small, str(tmp_path / "whole"), *long), monkeypatch)
    job = subprocess.Popen(command(small, str(tmp_path / "killed"), *long), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (states := list((tmp_path / "killed").glob("runs/*/seed0/gru/resume/step-*"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert list(states[0].parent.glob("step-*")), "it was killed too late for this test to mean anything"
    deadline = time.monotonic() + 10
    while processes_with(str(tmp_path / "killed")):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    whole_job(command(small, str(tmp_path / "killed"), *long), monkeypatch)
    (whole,) = (tmp_path / "whole").glob("runs/*/seed0/gru/nll.parquet")
    (resumed,) = (tmp_path / "killed").glob("runs/*/seed0/gru/nll.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(whole), pd.read_parquet(resumed))


def test_a_folder_in_use_or_of_another_config_is_refused(small: RunConfig) -> None:
    with own_folder(small), pytest.raises(ValueError, match="another job is writing there"), own_folder(small):
        pass
    other = dataclasses.replace(small, folder=str(small.run_folder), name="other")
    with pytest.raises(ValueError, match="another config wrote these results"), own_folder(other):
        pass
