"""Figures looked at by code: no text on other text, none cut off, marks for what failed, round ticks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib.style
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from harness.records import Decode, PositionCurve, Record, RecordStore, Training
from harness.report.adapting import Adapting
from harness.report.collect import Run, collect
from harness.report.contexts import Contexts
from harness.report.curves import Curves
from harness.report.figures import (
    decode,
    decode_batch,
    dynamic,
    first_token,
    fixed_target,
    position,
    prefill,
    quality_cost,
    training,
)
from harness.report.figures.axes import linear_ticks, numbers, round_ticks, spread
from harness.report.figures.recall import recall_map, recall_slices
from harness.report.figures.training import running_mean
from harness.report.recall import Recall
from harness.report.style import LOOKS, STYLE, looks, rank
from harness.report.summary import headlines
from harness.report.timings import timings
from tests.report.sample import MODELS, build

Edit = Callable[[Record], Record | None]


def _renamed(record: Record) -> Record:
    names = dict(zip(MODELS, ("llama_with_a_long_name", "rwkv7", "deltanet", "gla"), strict=True))
    return dataclasses.replace(record, model=names.get(record.model, record.model))


def _lengths(record: Record) -> Record:
    if isinstance(record.values, PositionCurve) and record.family != "ngram":
        record.values.train_length = {"mamba": 512, "ttt_mlp": None}.get(record.model, 256)
    return record


def _broken(record: Record) -> Record | None:
    if record.model == "mamba" and isinstance(record.values, Training):
        record.values.loss[60:] = [math.nan] * 40
        return dataclasses.replace(record, status="nan", message="loss is not finite at step 241")
    return None if record.model == "mamba" else record


VARIANTS: dict[str, Edit] = {
    "as is": lambda record: record,
    "unknown names": _renamed,
    "several training lengths": _lengths,
    "one model": lambda record: record if record.model in ("mamba", "") else None,
    "one breaks": _broken,
}


@pytest.fixture(scope="module", params=VARIANTS)
def run(request: pytest.FixtureRequest, unrendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The sample, changed in one way each."""
    folder = tmp_path_factory.mktemp("variant")
    store = RecordStore(folder)
    for record in RecordStore(unrendered):
        changed = VARIANTS[request.param](record)
        if changed is not None:
            store.append(changed)
    (folder / "models").symlink_to(unrendered / "models")
    return collect([folder])


@pytest.fixture(scope="module")
def texts(run: Run) -> list[tuple[Bbox, list[tuple[str, Bbox]]]]:
    """The frame of each figure, and all text drawn on it with the box that it fills, in pixels."""
    curves = Curves(run)
    with matplotlib.style.context(STYLE, after_reset=True):
        made = [
            position(run, curves), fixed_target(run, Contexts(run)), prefill(run), decode(run), training(run, curves),
            quality_cost(run, curves), dynamic(run, Adapting(run)), recall_slices(run, Recall(run)),
            recall_map(run, Recall(run)), first_token(run), decode_batch(run),
        ]  # fmt: skip
        assert None not in made
        return [(drawn.figure.bbox, _texts(drawn.figure)) for drawn in made if drawn]


def _texts(figure: Figure) -> list[tuple[str, Bbox]]:
    canvas, drawn = FigureCanvasAgg(figure), []
    with pytest.MonkeyPatch.context() as patch:
        draw = Text.draw
        patch.setattr(Text, "draw", lambda text, renderer: (drawn.append(text), draw(text, renderer)))
        canvas.draw()
    boxes = [(text.get_text(), Text.get_window_extent(text, canvas.get_renderer())) for text in drawn]
    return [(text, box) for text, box in boxes if text.strip()]


def test_no_text_lies_on_other_text_or_is_cut_off(texts: list[tuple[Bbox, list[tuple[str, Bbox]]]]) -> None:
    for frame, found in texts:
        for text, box in found:
            assert frame.x0 <= box.x0, text
            assert box.x1 <= frame.x1, text
            assert frame.y0 <= box.y0, text
            assert box.y1 <= frame.y1, text
        for (one, first), (two, second) in itertools.combinations(found, 2):
            overlap = Bbox.intersection(first, second)
            assert overlap is None or min(overlap.width, overlap.height) < 2, (one, two)


def test_lines_are_labelled_by_name_and_ticks_are_plain(
    run: Run, texts: list[tuple[Bbox, list[tuple[str, Bbox]]]]
) -> None:
    for _, found in texts:
        assert len(found) > 10
        assert not any("$" in text or "e+" in text for text, _ in found)
    assert set(run.floors) | set(Curves(run).sums) <= {text for text, _ in texts[0][1]}


def test_what_failed_is_marked_on_the_figure(tmp_path: Path) -> None:
    run = collect([build(tmp_path, seeds=(0,), documents=5)])
    drawn = prefill(run)
    assert drawn is not None
    figure = drawn.figure
    assert "× not measured: transformer: oom at 4096" in [text for text, _ in _texts(figure)]
    crosses = [line for ax in figure.axes for line in ax.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[4096], [4096]]
    assert {line.get_color() for line in crosses} == {LOOKS["transformer"].color}


def test_the_figure_draws_the_curve_with_its_band_and_training_length(tmp_path: Path) -> None:
    run = collect([build(tmp_path, seeds=(0,), documents=8)])
    curves = Curves(run)
    drawn = position(run, curves)
    assert drawn is not None
    ax = drawn.figure.axes[0]
    line = next(line for line in ax.lines if line.get_color() == LOOKS["mamba"].color and len(line.get_xdata()) > 2)
    np.testing.assert_allclose(line.get_ydata(), np.exp(curves.log_perplexity("mamba").value[curves.shown]))
    assert len(ax.collections) == len(run.models)
    assert any(list(line.get_xdata()) == [256, 256] for line in ax.lines)


def test_decoding_is_drawn_against_batch_and_against_context_at_the_smallest(tmp_path: Path) -> None:
    run = collect([build(tmp_path, seeds=(0,), documents=5)])
    by_batch, by_context = decode_batch(run), decode(run)
    assert by_batch is not None
    assert by_context is not None
    for drawn, x in ((by_batch, [1, 8]), (by_context, [256, 1024, 2048])):
        (line,) = [ln for ln in drawn.figure.axes[0].lines if ln.get_color() == LOOKS["ttt_mlp"].color]
        assert list(line.get_xdata()) == x
    (rate,) = [ln for ln in by_batch.figure.axes[0].lines if ln.get_color() == LOOKS["mamba"].color]
    eight = timings(run, Decode, "mamba", 8)[2048]
    assert rate.get_ydata()[1] == pytest.approx(8 / np.median(eight.seconds))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(900, 110_000, ["1000", "3000", "10k", "30k", "100k"]), (2.05, 4.9, ["2.5", "3.0", "3.5", "4.0", "4.5"]),
     (1.4, 6.5, ["1.5", "2", "3", "4", "6"]), (3.31, 3.42, ["3.32", "3.34", "3.36", "3.38", "3.40", "3.42"])],
)  # fmt: skip
def test_ticks_are_round(low: float, high: float, ticks: list[str]) -> None:
    assert round_ticks(low, high)[1] == ticks


def test_linear_ticks_share_their_decimals() -> None:
    assert numbers(linear_ticks(0.9, 2.1)) == ["1.0", "1.2", "1.4", "1.6", "1.8", "2.0"]


def test_labels_are_pushed_apart_no_further_than_needed() -> None:
    assert spread(np.array([0.0, 50.0, 100.0]), 10, -20, 120).tolist() == [0, 50, 100]
    assert spread(np.array([52.0, 50.0]), 10, 0, 100).tolist() == [56, 46]
    crowded = spread(np.array([98.0, 99.0, 100.0, 20.0]), 10, 0, 100)
    assert crowded.tolist() == [80, 90, 100, 20]


def test_running_mean_spans_a_twentieth_and_keeps_what_is_not_finite() -> None:
    assert running_mean(np.arange(10.0)).tolist() == list(range(10))
    spike = np.zeros(80)
    spike[40] = 5.0
    assert running_mean(spike)[37:44].tolist() == [0, 1, 1, 1, 1, 1, 0]
    spike[79] = math.nan
    assert math.isnan(running_mean(spike)[79])


def test_looks_are_distinct_and_do_not_depend_on_the_order() -> None:
    names = ["mamba", *(f"model{i}" for i in range(7))]
    found = looks(names)
    assert len({look.color for look in found.values()}) == len({look.marker for look in found.values()}) == 8
    assert found == looks(names[::-1])
    assert found["mamba"] == LOOKS["mamba"]
    assert sorted(["zeta", "ttt_mlp", "alpha", "transformer"], key=rank) == ["transformer", "ttt_mlp", "alpha", "zeta"]


def test_the_frontier_leaves_out_what_another_beats_in_both(tmp_path: Path) -> None:
    run = collect([build(tmp_path, seeds=(0,), documents=8)])
    curves = Curves(run)
    drawn = quality_cost(run, curves)
    assert drawn is not None
    (frontier,) = [line for line in drawn.figure.axes[0].lines if line.get_drawstyle() == "steps-post"]
    cost, quality = (np.asarray(part, float) for part in frontier.get_data())
    assert len(cost) >= 1
    assert (np.diff(cost) > 0).all()
    assert (np.diff(quality) < 0).all()
    head = next(head for head in headlines(curves) if head.key == "trained")
    ends = {name: np.exp(curves.log_perplexity(name).value[head.bucket[name]]) for name in run.models}
    times = {name: timings(run, Decode, name)[2048].milliseconds(50) for name in run.models}
    for name in run.models:
        beaten = any(times[o] < times[name] and ends[o] <= ends[name] for o in run.models)
        assert beaten != bool(np.isclose(cost, times[name]).any())
