"""Several folders in one report, chosen models, axes and smoothing: no code is edited to see something else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from harness.records import PositionCurve, Record, RecordStore, Training
from harness.report.__main__ import main
from harness.report.collect import Run, collect
from harness.report.curves import Curves
from harness.report.figures import position, training
from harness.report.figures.axes import Drawn
from harness.report.likeness import require_alike
from harness.report.style import STYLE
from harness.report.view import Axis, View, parse_axis
from tests.report.sample import build, nll_of, write_nll

CONFIG = {"name": "one", "data": {"source": "sotu"}, "train": {"tokens": 5}, "model": {"mamba": {"family": "mamba"}}}


def scored(folder: Path, models: tuple[str, ...], seed: int = 0, **config: object) -> Path:
    """A run folder of two or three rows a model."""
    folder.mkdir(parents=True)
    names = {name: {"family": name} for name in models}
    OmegaConf.save(OmegaConf.create(CONFIG | {"model": names} | config), folder / "config.yaml")
    for name in (*models, "3-gram"):
        write_nll(folder / f"{name}.parquet", nll_of(name, seed, 6, 1.1))
        trained = None if name == "3-gram" else 256
        values = PositionCurve(f"{name}.parquet", 6, 10_000, 2048, trained, bytes=10_006)
        origin = {"data_hash": "5eed", "config_hash": str(folder), "models": list(models)}
        family = "ngram" if name == "3-gram" else name
        RecordStore(folder).append(Record("position", name, family, seed, values=values, provenance=origin))
        if trained:
            learned = Training(10, 10, 1, 256, [1, 2, 4], [3.0, 2.0, 1.0], 1, 1, "")
            RecordStore(folder).append(Record("training", name, family, seed, values=learned, provenance=origin))
    return folder


def test_seeds_of_a_model_trained_alike_are_pooled_whatever_else_a_folder_holds(tmp_path: Path) -> None:
    one = scored(tmp_path / "a", ("mamba",), seed=0)
    two = scored(tmp_path / "b", ("mamba", "transformer"), seed=1, name="two")
    run = collect([one, two])
    assert set(run.models) == {"mamba", "transformer"}
    assert {row.record.seed for row in run.rows if row.record.model == "mamba"} == {0, 1}
    assert run.floors == ["3-gram"]
    with pytest.raises(ValueError, match="models differ in seeds"):
        require_alike(run, [])


def test_different_models_of_a_name_are_told_apart_by_their_runs(tmp_path: Path) -> None:
    one = scored(tmp_path / "x" / "low-0123abcd", ("mamba", "transformer"))
    two = scored(tmp_path / "x" / "high-4567abcd", ("mamba",), seed=1, name="two", train={"tokens": 9})
    run = collect([one, two])
    assert set(run.models) == {"mamba (one)", "mamba (two)", "transformer"}
    assert run.floors == ["3-gram"]
    assert len([row for row in run.rows if row.record.family == "ngram"]) == 2  # a seed each
    assert np.isfinite(Curves(run).difference("mamba (one)", "mamba (two)").low).any()
    assert "mamba" in collect([one, scored(tmp_path / "x" / "more", ("mamba",), seed=1, name="two")]).models


def test_runs_of_one_name_are_told_apart_by_folder_and_the_same_seed_is_never_pooled(tmp_path: Path) -> None:
    folders = [scored(tmp_path / part / "run", ("mamba",)) for part in ("here", "there")]
    assert collect(folders).models == ["mamba (here/run)", "mamba (there/run)"]
    plain = [build(tmp_path / part, seeds=(0,), documents=5) for part in ("left-0123abcd", "right-0123abcd")]
    assert {"mamba (left)", "mamba (right)"} < set(collect(plain).models)


def test_folders_are_held_to_like_for_like(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = scored(tmp_path / "a", ("mamba",)), scored(tmp_path / "b", ("transformer",))
    rows = list(RecordStore(two))
    (two / "records.jsonl").unlink()
    for row in rows:
        RecordStore(two).append(dataclasses.replace(row, provenance=row.provenance | {"data_hash": "other"}))
    assert main([str(one), str(two)]) == 2
    assert "models differ in data_hash" in capsys.readouterr().err


def test_the_command_draws_chosen_models_where_it_is_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = scored(tmp_path / "a", ("mamba", "ttt_mlp")), scored(tmp_path / "b", ("transformer",))
    place = tmp_path / "elsewhere"
    (place / "report").mkdir(parents=True)
    (place / "notes.txt").write_text("of my own")
    (place / "report" / "report.html").write_text("old")
    chosen = ["models=[transformer,mamba]", "--x", "training=log", "--y", "perplexity=linear:0:9", "--smooth", "0"]
    assert main([str(one), str(two), *chosen, "--per-octave", "1", "--out", str(place)]) == 0
    summary = (place / "report" / "summary.md").read_text()
    assert summary.startswith("# Comparison of transformer, mamba\n")
    assert "| ttt_mlp |" not in summary
    assert "at 512–1023" in summary  # an octave, not half of one
    assert "running mean over 0 % of them" in summary
    assert not (one / "report").exists()
    assert (place / "notes.txt").exists()
    assert "Comparison of transformer, mamba" in (place / "report" / "report.html").read_text()
    assert main([str(one), "--models", "gru"]) == 2
    assert "--models gru: not in these records; choose from mamba, ttt_mlp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("log", Axis("", "log")), ("training=linear", Axis("training", "linear")),
        ("perplexity=log:2:6", Axis("perplexity", "log", 2, 6)), ("decode=:1:", Axis("decode", None, 1)),
        (":-1:2.5", Axis("", None, -1, 2.5)),
    ],
)  # fmt: skip
def test_an_axis_is_scale_and_limits_of_a_figure(text: str, axis: Axis) -> None:
    assert parse_axis(text) == axis


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("map=log", "no figure map with axes to choose; choose from perplexity, "),
        ("square", "with a scale of log or linear"), ("log:1", "write [FIGURE=]"), (":a:2", "limits are numbers"),
        (":3:2", "the lower limit must lie below the upper"), ("log:0:2", "begins above 0"),
    ],
)  # fmt: skip
def test_a_wrong_axis_is_one_line(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--x", text]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_choice_for_one_figure_goes_before_one_for_all() -> None:
    view = View(x=[Axis("training", "log"), Axis("", "linear")])
    assert (view.axis("x", "training").scale, view.axis("x", "decode").scale) == ("log", "linear")
    assert view.axis("y", "training") == Axis()
    for wrong in ({"smooth": 1.5}, {"per_octave": 0}):
        with pytest.raises(ValueError, match="at least"):
            View(**wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return collect([scored(tmp_path_factory.mktemp("view") / "run", ("mamba", "transformer"))])


def figure(drawn: Drawn | None) -> Figure:
    assert drawn is not None
    return drawn.figure


def test_axes_have_the_chosen_scale_limits_and_ticks(run: Run) -> None:
    view = View(x=[Axis("perplexity", None, 64, 1024), Axis("training", "log")], y=[Axis("perplexity", "linear", 2, 6)])
    curves = Curves(run)
    with matplotlib.style.context(STYLE, after_reset=True):
        left, right, *_ = figure(position(run, curves, view)).axes
        (curve,) = figure(training(run, curves, view)).axes
    assert (left.get_yscale(), left.get_ylim(), left.get_xlim()) == ("linear", (2, 6), (64, 1024))
    assert [text.get_text() for text in left.get_yticklabels()] == ["2", "3", "4", "5", "6"]
    assert [text.get_text() for text in left.get_xticklabels()] == ["64", "128", "256", "512", "1024"]
    assert right.get_xlim() == (64, 1024)
    assert right.get_ylim() != (2, 6)
    assert (curve.get_xscale(), curve.get_xlim()[0]) == ("log", 1)
    with pytest.raises(ValueError, match="its y axis is log and cannot begin at 0"):
        position(run, curves, View(y=[Axis("", None, 0, 5)]))


def test_smoothing_is_a_share_of_the_training(run: Run) -> None:
    with matplotlib.style.context(STYLE, after_reset=True):
        (rough,) = figure(training(run, Curves(run), View(smooth=0.0))).axes
        (smooth,) = figure(training(run, Curves(run), View(smooth=0.9))).axes
    assert rough.lines[1].get_ydata() == pytest.approx(np.array([3, 2, 1]) / np.log(2))
    assert smooth.lines[1].get_ydata() == pytest.approx(np.array([2.5, 2, 1.5]) / np.log(2))
