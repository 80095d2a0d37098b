"""Which rows count: the last of a kind, seeds over several folders, one clear line where there is nothing to show."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.records import Conditions, PositionCurve, Prefill, Record, RecordStore, Training
from harness.report import render
from harness.report.__main__ import main
from harness.report.collect import collect
from harness.report.conditions import job
from harness.report.curves import Curves, read_scores
from harness.report.summary import summary
from harness.report.timings import timings
from tests.report.sample import build, write_nll


def _prefill(store: RecordStore, seconds: float | None, length: int = 512, batch: int = 1, seed: int = 0) -> None:
    values = None if seconds is None else Prefill(batch, length, [seconds], None, 10, 10)
    status = "ok" if values else "oom"
    store.append(Record("prefill", "mamba", "mamba", seed, status, "", values, Conditions(), {}, "", length))


def _scored(
    folder: Path, name: str, seed: int, nll: list[np.ndarray], family: str = "x", trained: int | None = 32
) -> None:
    write_nll(folder / f"{name}-{seed}.parquet", nll)
    values = PositionCurve(f"{name}-{seed}.parquet", len(nll), sum(map(len, nll)), 65, trained)
    RecordStore(folder).append(Record("position", name, family, seed, values=values))


def test_the_last_row_of_a_shape_wins(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for seconds in (1.0, 2.0):
        _prefill(store, seconds)
    _prefill(store, 5.0, length=1024)
    found = timings(collect([tmp_path]), Prefill, "mamba")
    assert {length: timing.seconds.tolist() for length, timing in found.items()} == {512: [2.0], 1024: [5.0]}


def test_a_failure_at_one_batch_leaves_the_others(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    _prefill(store, 1.0, batch=1)
    _prefill(store, 2.0, batch=8)
    store.append(Record("prefill", "mamba", "mamba", 0, "oom", length=512, batch=8))
    found = collect([tmp_path])
    assert [row.record.values.batch for row in found.rows if isinstance(row.record.values, Prefill)] == [1]
    assert [str(failure) for failure in found.failures()] == ["mamba: oom at 512 × 8"]


def test_models_stand_in_the_order_of_the_last_command(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for minute, models in enumerate((["mamba", "transformer", "own"], ["own", "transformer", "mamba"])):
        for name in ("transformer", "own", "mamba"):
            store.append(Record("gate", name, "x", 0, provenance={"models": models}, time=f"2026-01-01T00:0{minute}"))
    assert collect([tmp_path]).models == ["own", "transformer", "mamba"]
    old = {"models": ["another", "mamba"]}
    store.append(Record("gate", "another", "x", 0, provenance=old, time="2026-01-01T00:00"))
    assert collect([tmp_path]).models == ["own", "transformer", "mamba", "another"]


def test_a_failure_is_forgotten_when_the_measurement_succeeds_and_the_other_way_round(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    _prefill(store, None)
    _prefill(store, None, length=1024)
    assert [str(failure) for failure in collect([tmp_path]).failures()] == ["mamba: oom at 512", "mamba: oom at 1024"]
    _prefill(store, 1.0)
    assert [str(failure) for failure in collect([tmp_path]).failures()] == ["mamba: oom at 1024"]
    _prefill(store, None)
    assert 512 not in timings(collect([tmp_path]), Prefill, "mamba")


def test_repeats_are_pooled_over_seeds_and_the_smallest_batch_is_drawn(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    _prefill(store, 9.0, batch=8)
    _prefill(store, 1.0, seed=0)
    _prefill(store, 2.0, seed=1)
    timing = timings(collect([tmp_path]), Prefill, "mamba")[512]
    assert (timing.batch, sorted(timing.seconds)) == (1, [1.0, 2.0])


def test_folders_of_a_sweep_are_seeds_of_one_comparison(tmp_path: Path) -> None:
    together = build(tmp_path / "together", documents=8)
    apart = [build(tmp_path / "apart" / str(seed), seeds=(seed,), documents=8) for seed in (0, 1)]
    one, two = summary(run := collect([together]), Curves(run)), summary(run := collect(apart), Curves(run))
    assert one.text() == two.text()
    assert run.seeds == [0, 1]


def test_the_same_folder_twice_is_refused(tmp_path: Path) -> None:
    _prefill(RecordStore(tmp_path), 1.0)
    with pytest.raises(ValueError, match="is given twice"):
        collect([tmp_path, tmp_path / "x" / ".."])


def test_models_that_scored_other_documents_are_refused(tmp_path: Path) -> None:
    _scored(tmp_path, "one", 0, [np.ones(64)] * 6)
    _scored(tmp_path, "two", 0, [np.ones(64)] * 7)
    with pytest.raises(ValueError, match="model two seed 0 scored other documents than one did"):
        Curves(collect([tmp_path]))


def test_no_records_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"no records in {tmp_path}: a run folder holds a records.jsonl with at least one row\n"
    with pytest.raises(ValueError, match="no records in"):
        render([tmp_path / "missing"])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_nll_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _scored(tmp_path, "one", 0, [np.ones(64)] * 6)
    (tmp_path / "one-0.parquet").unlink()
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path}/one-0.parquet is missing: ")


def test_nll_file_is_read_back_in_the_order_of_names(tmp_path: Path) -> None:
    write_nll(tmp_path / "nll.parquet", [np.array([1.0, 2.0, 3.0]), np.array([4.0])])
    table = pq.read_table(tmp_path / "nll.parquet")
    pq.write_table(table.take([1, 0]), tmp_path / "nll.parquet")
    scores = read_scores(tmp_path / "nll.parquet")
    assert scores.documents == ["doc00", "doc01"]
    assert scores.lengths.tolist() == [3, 1]
    np.testing.assert_array_equal(scores.nll, [[1, 2, 3], [4, math.nan, math.nan]])


def test_a_tokens_loss_is_spread_over_its_bytes(tmp_path: Path) -> None:
    columns = {
        "document": ["a", "b", "c"],
        "nll": [[6.0, 1.0, 4.0], [2.0], []],
        "target_bytes": pa.array([[3, 0, 2], [2], []], pa.list_(pa.uint16())),
        "first_bytes": [2, 0, 4],
    }
    pq.write_table(pa.table(columns), tmp_path / "nll.parquet")
    scores = read_scores(tmp_path / "nll.parquet")
    assert scores.lengths.tolist() == [6, 1, 0]
    np.testing.assert_array_equal(scores.nll[0], [0, 2, 2, 2, 2.5, 2.5])
    np.testing.assert_array_equal(scores.scored[0], [0, 1, 1, 1, 1, 1])
    assert scores.nll[1, 0] == 1


def test_models_of_different_tokens_compare_by_bytes_and_where_they_did_not_read_the_same_there_is_no_difference(
    tmp_path: Path,
) -> None:
    _scored(tmp_path, "one", 0, [np.full(64, 1.0)] * 6)
    _scored(tmp_path, "two", 0, [np.full(64, 1.0)] * 6)
    columns = {
        "document": [f"doc{i:02d}" for i in range(6)],
        "nll": [[1.5] * 21] * 6,
        "target_bytes": pa.array([[3] * 21] * 6, pa.list_(pa.uint16())),
        "first_bytes": [2] * 6,
    }
    pq.write_table(pa.table(columns), tmp_path / "two-0.parquet")
    curves = Curves(collect([tmp_path]))
    np.testing.assert_allclose(curves.nats_per_byte("two").value, 0.5)
    difference = curves.difference("two", "one").value
    assert np.isnan(difference[-1])
    np.testing.assert_allclose(difference[:-1], -0.5)
    assert np.isnan(curves.nats_per_byte_within("two", "one").value).all()


def test_a_nan_in_the_scores_is_shown_as_such(tmp_path: Path) -> None:
    nll = [np.ones(64) for _ in range(6)]
    nll[3][40] = math.nan
    _scored(tmp_path, "one", 0, nll)
    table = summary(run := collect([tmp_path]), Curves(run))
    keys = [column.key for column in table.columns]
    row = dict(zip(keys, table.text()[0], strict=True))
    assert (row["ppl_trained"], row["bits_per_byte"]) == ("2.72", "NaN")


def test_headline_context_is_the_last_bucket_within_the_training_length(tmp_path: Path) -> None:
    nll = [np.concatenate([np.full(31, 1.0), np.full(33, 3.0)]) for _ in range(6)]  # 3 nats from context 32 on
    _scored(tmp_path, "one", 0, nll)
    _scored(tmp_path, "3-gram", 0, [np.full(64, 2.0)] * 6, family="ngram", trained=None)
    run = collect([tmp_path])
    table = summary(run, Curves(run))
    assert (run.models, run.floors) == (["one"], ["3-gram"])
    assert next(column.title for column in table.columns if column.key == "ppl_trained") == "ppl/byte at 23–31"
    assert [row["ppl_trained"].value for row in table.rows] == pytest.approx([math.e, math.exp(2)])


def test_the_cost_of_the_job_is_the_sum_of_its_sessions(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", seeds=(0,), documents=5)
    lines = (folder / "records.jsonl").read_text().splitlines()
    (folder / "records.jsonl").write_text("\n".join([*lines, lines[-1]]) + "\n")
    table = job(collect([folder]))
    assert table is not None
    assert table.rows[-1] == {"part": "whole job", "wall": 2 * 411.2, "cpu": 2 * 702.9}


def test_what_stopped_a_model_before_is_told_under_later_measurements(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    broken = Training(10, 10, 1, 32, [10], [math.nan], 1.0, 1.0, "")
    store.append(Record("training", "mamba", "mamba", 0, "nan", "loss is NaN at step 3", broken))
    _prefill(store, 1.0, seed=1)
    run = collect([tmp_path])
    assert [str(failure) for failure in run.absences("position")] == ["mamba: nan (loss is NaN at step 3)"]
    assert run.absences("prefill") == []
