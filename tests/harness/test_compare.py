"""What changed between two runs: every planted difference is told, what is alike is not, and the numbers are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.compare.__main__ import compare, main
from harness.compare.origins import conditions, config, provenance
from harness.compare.rows import missing
from harness.compare.values import losses, quality, ratio_of_medians, speed, training
from harness.records import Prefill, Record, RecordStore, Training
from harness.report.collect import Run, collect
from tests.report.sample import TRAIN_LENGTH, build, nll_of, write_nll

DOCUMENTS = 6


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("first") / "run", documents=DOCUMENTS)
    (folder / "config.yaml").write_text("train: {tokens: 5, length: 256}\nname: one\n")
    return folder


def changed(first: Path, folder: Path, change: Callable[[Record], Record | None]) -> Path:
    """The first run with its rows changed."""
    (folder / "models").symlink_to(first / "models")
    for record in RecordStore(first):
        if (row := change(record)) is not None:
            RecordStore(folder).append(row)
    return folder


def better(seed: int) -> list[np.ndarray]:
    """Mamba's losses of the first run less some 0.02 nats, by document."""
    gain = np.random.default_rng(seed).normal(0.02, 0.002, DOCUMENTS)
    return [row - less for row, less in zip(nll_of("mamba", seed, DOCUMENTS, 1.14), gain, strict=True)]


@pytest.fixture(scope="module")
def second(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mamba scores better, prefills in half the time, trains in twice; another torch; no decoding."""
    folder = tmp_path_factory.mktemp("second")
    for seed in (0, 1):
        write_nll(folder / f"{seed}.parquet", better(seed))

    def change(r: Record) -> Record | None:
        r.provenance["versions"] = r.provenance["versions"] | {"torch": "2.99"}
        if r.model == "mamba" and r.kind == "position":
            r = dataclasses.replace(r, values=dataclasses.replace(r.values, nll_file=f"{r.seed}.parquet"))  # type: ignore[type-var]
        if r.model == "mamba" and isinstance(r.values, Prefill):
            r.values.seconds = [second / 2 for second in r.values.seconds]
            r.conditions.kernel_path = "compiled"
        if r.model == "mamba" and isinstance(r.values, Training):
            r.values.cpu_seconds *= 2
        return None if r.kind == "decode" and r.model == "ttt_mlp" else r

    changed(first, folder, change)
    (folder / "config.yaml").write_text("train: {tokens: 9, length: 256}\nname: one\n")
    return folder


@pytest.fixture(scope="module")
def runs(first: Path, second: Path) -> tuple[Run, Run]:
    return collect([first]), collect([second])


def test_config_and_origins_name_what_differs_and_nothing_else(runs: tuple[Run, Run]) -> None:
    a, b = {"train": {"tokens": 5, "length": 256}, "x": [1]}, {"train": {"tokens": 9, "length": 256}, "y": None}
    assert config(a, b).rows == [
        {"key": "train.tokens", "a": "5", "b": "9"}, {"key": "x", "a": "[1]", "b": None},
        {"key": "y", "a": None, "b": "None"},
    ]  # fmt: skip
    assert provenance(*runs).rows == [{"key": "versions: torch", "a": "2.13.0", "b": "2.99"}]
    assert conditions(*runs).rows == [{"key": "mamba: kernel_path", "a": "native", "b": "compiled, native"}]


def test_losses_have_the_paired_difference_and_what_is_equal_is_left_out(runs: tuple[Run, Run]) -> None:
    table = quality(*runs)
    assert [(row["model"], row["convention"]) for row in table.rows] == [
        ("mamba", "position, all"), ("mamba", f"position, within {TRAIN_LENGTH}")
    ]  # fmt: skip
    whole = table.rows[0]
    before = np.concatenate([row for seed in (0, 1) for row in nll_of("mamba", seed, DOCUMENTS, 1.14)]).mean()
    after = np.concatenate([row for seed in (0, 1) for row in better(seed)]).mean()
    assert (whole["a"], whole["b"]) == pytest.approx((before / np.log(2), after / np.log(2)), rel=1e-6)
    assert whole["change"].value == pytest.approx((after - before) / np.log(2), rel=1e-4)
    assert whole["change"].low < whole["change"].value < whole["change"].high < 0
    assert whole["change"].high - whole["change"].low < 0.01  # paired: the documents themselves differ by far more
    assert whole["ratio"].value == pytest.approx(np.exp(after - before), rel=1e-5)
    assert whole["sure"] == "yes"
    assert "Left out: " in table.caption


def test_other_documents_have_no_paired_interval(first: Path, tmp_path: Path) -> None:
    def other(r: Record) -> Record | None:
        return dataclasses.replace(r, provenance=r.provenance | {"data_hash": "other"}) if r.model == "mamba" else None

    a, b = collect([first]), collect([changed(first, tmp_path, other)])
    one, two = losses(a, "mamba")["position, all"], losses(b, "mamba")["position, all"]
    assert np.isnan(one.change(two).low)
    assert np.isfinite(one.change(one).low)
    fewer = dataclasses.replace(one, documents=one.documents[1:], bytes=one.bytes[1:], nll=one.nll[1:])
    assert np.isnan(one.change(fewer).low)
    assert one.change(fewer).value == pytest.approx((fewer.bits - one.bits) * np.log(2))


def test_times_are_ratios_of_medians_over_all_seeds(runs: tuple[Run, Run]) -> None:
    rows = {(row["model"], row["kind"], row["at"]): row for row in speed(*runs).rows}
    halved = rows["mamba", "prefill", "512 × 1"]
    seconds = [v.seconds for v in runs[0].values(Prefill, "mamba") if v.length == 512]
    assert halved["a"] == pytest.approx(1e3 * np.median(np.concatenate(seconds)))
    assert halved["ratio"].value == pytest.approx(0.5)
    assert halved["ratio"].low < 0.5 < halved["ratio"].high < 1
    assert rows["ttt_linear", "train_step", "256 × 4"]["ratio"].value == 1
    assert ("ttt_mlp", "decode", "256 × 1") not in rows
    assert ratio_of_medians(np.full(5, 2.0), np.full(5, 3.0)).value == 1.5


def test_training_tells_closing_loss_and_cpu_time(runs: tuple[Run, Run]) -> None:
    rows = {row["model"]: row for row in training(*runs).rows}
    assert rows["mamba"]["ratio"] == pytest.approx(2)
    assert rows["ttt_mlp"]["ratio"] == pytest.approx(1)
    values = runs[0].values(Training, "mamba")
    assert rows["mamba"]["loss_a"] == pytest.approx(np.mean([np.mean(v.loss[-10:]) for v in values]))


def test_rows_of_one_run_alone_are_listed_with_what_the_other_says(first: Path, tmp_path: Path) -> None:
    def failed(r: Record) -> Record | None:
        if r.kind == "prefill" and r.model == "mamba" and r.length == 512:
            return dataclasses.replace(r, values=None, status="oom", batch=1)
        return None if r.kind == "decode" and r.model == "ttt_mlp" else r

    table = missing(collect([first]), collect([changed(first, tmp_path, failed)]))
    assert {(row["model"], row["kind"], row["at"], row["seeds"], row["only"], row["why"]) for row in table.rows} == {
        ("mamba", "prefill", "512 × 1", "0, 1", "A", "B: oom"),
        *(
            ("ttt_mlp", "decode", shape, "0, 1", "A", "B: no row")
            for shape in ("256 × 1", "1024 × 1", "2048 × 1", "1024 × 8", "2048 × 8")
        ),
    }


def test_the_command_prints_aligned_tables_and_reads_nothing_but_records(
    first: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(first), str(second)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"A  {first}\nB  {second}\n")
    for part in ("train.tokens  5  9", "versions: torch  2.13.0  2.99", "Rows only in one", "position, within 256"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120
    assert "Nothing to tell: Config, Provenance, Conditions, Losses, Rows only in one." in compare(first, first)
    assert main([str(first), str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"no records in {tmp_path}: a run folder holds a records.jsonl with at least one row\n"
    )
