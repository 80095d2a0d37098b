"""The tables of answers, against numbers computed by hand from the sample's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.records import Record, RecordStore, TextRecall
from harness.report.adapting import Adapting, dynamic
from harness.report.benchmarks import benchmarks
from harness.report.collect import Run, collect
from harness.report.contexts import Contexts
from harness.report.curves import Curves
from harness.report.formats import Interval
from harness.report.recall import Recall, recall
from harness.report.significance import _verdict, context_gain, conventions, significance
from harness.report.summary import headlines
from harness.report.tables import Table
from tests.report.sample import CONTEXTS, MAX_LENGTH, MODELS, build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sample"), documents=12)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return collect([folder])


def row(table: Table | None, **wanted: object) -> dict[str, object]:
    assert table is not None
    (found,) = [row for row in table.rows if all(row[key] == value for key, value in wanted.items())]
    return found


def test_the_curve_is_the_mean_over_seeds_of_all_targets_at_a_context(run: Run, folder: Path) -> None:
    contexts = Contexts(run)
    assert contexts.middles.tolist() == list(CONTEXTS)
    frames = [pd.read_parquet(folder / f"models/mamba-{seed}/fixed_target.parquet") for seed in (0, 1)]
    for k, context in enumerate(CONTEXTS):
        wanted = np.mean([np.concatenate(f[f["context"] == context]["nll"].tolist()).mean() for f in frames])
        assert contexts.log_perplexity("mamba").value[k] == pytest.approx(wanted, rel=1e-6)


def test_what_context_is_worth_is_a_paired_difference_with_a_verdict(run: Run) -> None:
    contexts = Contexts(run)
    table = context_gain(run, contexts)
    mamba = row(table, model="mamba")
    nats = contexts.log_perplexity("mamba").value
    assert mamba["within"].value == pytest.approx(nats[CONTEXTS.index(128)] - nats[0])  # type: ignore[attr-defined]
    assert mamba["beyond"].value == pytest.approx(nats[-1] - nats[CONTEXTS.index(128)])  # type: ignore[attr-defined]
    assert row(table, model="transformer")["verdict"] == "hurts"
    assert mamba["verdict"] == "helps"
    assert row(table, model="3-gram")["verdict"] == "no certain change"


@pytest.mark.parametrize(("change", "verdict"), [(1e-8, "no certain change"), (1e-5, "hurts"), (-1e-5, "helps")])
def test_rounding_neither_helps_nor_hurts(change: float, verdict: str) -> None:
    assert _verdict(Interval(change, *sorted((0.9 * change, 1.1 * change)))) == verdict


def test_every_pair_is_compared_once_a_context_and_the_better_one_named(run: Run) -> None:
    table = significance(run, Curves(run))
    assert table is not None
    assert len(table.rows) == 3 * 6
    found = row(table, context="at 1448–2047", better="mamba", worse="transformer")
    assert found["sure"] == "yes"
    assert found["by"].high < 0  # type: ignore[attr-defined]
    assert all(r["holm"] >= r["p"] for r in table.rows)
    assert all(r["by"].value <= 0 for r in table.rows)


def test_conventions_stand_side_by_side(run: Run) -> None:
    """The sample's windows are its position scores, so both columns must say the same."""
    table = conventions(run, Curves(run))
    for name in MODELS:
        found = row(table, model=name)
        assert found["window_256_64"].value == pytest.approx(found["all"].value)  # type: ignore[attr-defined]
    assert [column.title for column in table.columns][-1] == "windows of 256, stride 64"  # type: ignore[union-attr]


def test_dynamic_evaluation_is_a_paired_gain_with_its_cost(run: Run, folder: Path) -> None:
    adapting = Adapting(run)
    found = row(dynamic(run, adapting), model="mamba")
    frames = [pd.read_parquet(folder / f"models/mamba-{seed}/dynamic.parquet") for seed in (0, 1)]
    gains = [np.concatenate(f["nll"].tolist()).mean() - np.concatenate(f["frozen_nll"].tolist()).mean() for f in frames]
    assert found["gain"].value == pytest.approx(np.mean(gains) / np.log(2), rel=1e-4)  # type: ignore[attr-defined]
    assert found["gain"].high < 0  # type: ignore[attr-defined]
    assert found["cost"] == pytest.approx(4.5)
    assert found["rate"] == "0.03, 0.06"


def test_benchmarks_are_the_mean_over_seeds_with_the_samples_error(run: Run) -> None:
    found = row(benchmarks(run), task="continuation", metric="acc")
    assert found["samples"] == 200
    mamba = found["mamba"]
    assert mamba.value == pytest.approx(0.56)  # type: ignore[attr-defined]
    assert mamba.high - mamba.value == pytest.approx(1.96 * 0.03, rel=1e-3)  # type: ignore[attr-defined]


def test_recall_is_counted_by_hand_and_reaches_as_far_as_its_threshold(run: Run, folder: Path) -> None:
    recalled = Recall(run)
    table = recall(recalled)
    rows = [r for r in RecordStore(folder) if r.model == "mamba" and isinstance(r.values, TextRecall)]
    right = np.mean([np.array(r.values.right["passkey"]) == 5 for r in rows], axis=(0, 3))  # type: ignore[union-attr]
    found = row(table, task="passkey", model="mamba")
    assert found["accuracy_longest"].value == pytest.approx(right[-1].mean())  # type: ignore[attr-defined]
    assert right[:3].mean(axis=1).min() >= 0.85 > right[3].mean()
    assert found["effective"] == 512
    assert row(table, task="passkey", model="transformer")["effective"] == 128
    by = [[np.array(part["repetition"]) for part in (r.values.nll_without, r.values.nll)] for r in rows]  # type: ignore[union-attr]
    gains = np.mean([(without[:, None] - nll) / np.log(2) for without, nll in by], axis=0)
    repeated = row(table, task="repetition", model="mamba")
    assert repeated["gain_shortest"].value == pytest.approx(gains[0].mean())  # type: ignore[attr-defined]
    slices, middles = recalled.by_distance("repetition")
    near = recalled.gain("mamba", "repetition", slices).value[0]
    assert near == pytest.approx(gains[slices == 0].mean())
    assert 64 <= middles[0] < 128


def test_recall_of_different_questions_is_not_put_side_by_side(tmp_path: Path) -> None:
    def other(record: Record) -> Record:
        if isinstance(record.values, TextRecall) and record.model == "mamba":
            record.values.depths[0] = 10
        return record

    store = RecordStore(tmp_path)
    for record in RecordStore(build(tmp_path / "made", seeds=(0,), documents=5)):
        store.append(other(record))
    with pytest.raises(ValueError, match="models were asked different questions of recall"):
        Recall(collect([tmp_path]))


def test_where_the_training_length_is_the_longest_context_it_is_quoted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.report.sample.TRAIN_LENGTH", MAX_LENGTH)
    keys = [head.key for head in headlines(Curves(collect([build(tmp_path, documents=6)])))]
    assert keys == ["short", "trained"]
