"""Ours against a paper's: steps and verdicts computed by hand, scale told apart, and drawn with the run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import matplotlib.style
import numpy as np
import pytest

from harness.records import PositionCurve, Record, RecordStore, Training, Window
from harness.reference import Reference, load
from harness.report.__main__ import main
from harness.report.against import NO, UNSURE, YES, Against, compare, sign_verdict
from harness.report.collect import Run, collect
from harness.report.figures.against import against as drawn
from harness.report.formats import Interval
from harness.report.style import STYLE
from harness.report.tables import Table
from harness.report.verdicts import against
from harness.report.within import Within
from tests.report.sample import TRAIN_LENGTH, build, nll_of, write_nll

PAPER = """
paper: {title: A paper, arxiv: "2407.04620", version: v4}
results:
  table_1:
    where: Table 1
    obtained: table
    title: A ladder
    ladder: true
    setting: {size: 800k, parameters: 800e3, tokens: 409600, data: the Pile, tokenizer: words, context: 256}
    quantities: {perplexity: {unit: perplexity per token, tolerance: 0.01, rounding: 0.005}}
    rows:
      - {name: one, model: transformer, values: {perplexity: 10.00}}
      - {name: two, model: mamba, values: {perplexity: 9.00}, differences: {perplexity: -1}}
      - {name: absent, model: lstm, values: {perplexity: 8.50}, differences: {perplexity: -0.5}}
      - {name: three, model: ttt_linear, values: {perplexity: 8.00}}
      - {name: four, model: ttt_mlp, values: {perplexity: 8.10}, differences: {perplexity: 0.1}}
    claims:
      - text: Mamba is worse than the Transformer.
        order: [[transformer, mamba], [lstm, gru]]
      - {text: It is fast.}
  figure_9: {where: Figure 9, obtained: plot, title: A plot}
  table_2:
    where: Table 2
    obtained: table
    title: Of another kind
    quantities: {accuracy: {unit: per cent, tolerance: 0.02}}
    rows: [{name: one, model: transformer, values: {accuracy: 44.5}}]
"""


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    path = tmp_path_factory.mktemp("paper") / "paper.yaml"
    path.write_text(PAPER)
    return load(str(path))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return collect([build(tmp_path_factory.mktemp("sample"), documents=12)])


@pytest.fixture(scope="module")
def compared(run: Run, paper: Reference) -> list[Against]:
    return compare(run, [paper], {"data": {"source": "sotu"}})


def by_hand(name: str, base: float, seed: int) -> float:
    rows = [row.astype(np.float32).astype(float)[: TRAIN_LENGTH - 1] for row in nll_of(name, seed, 12, base)]
    return float(np.concatenate(rows).mean())


def table(compared: list[Against], name: str) -> Table:
    (found,) = [table for table in against(compared) if table.name == name]
    return found


def test_a_step_is_the_change_of_the_loss_in_shares_of_the_row_before(compared: list[Against]) -> None:
    one, two, absent, three, four = compared[0].steps()
    before, after = (np.mean([by_hand(*of, seed) for seed in (0, 1)]) for of in (("transformer", 1.1), ("mamba", 1.14)))
    assert one.ours is not None
    assert one.ours.value == pytest.approx(math.exp(before))
    assert two.change is not None
    assert two.change.value == pytest.approx(after / before - 1)
    assert two.printed_change == pytest.approx(math.log(9) / math.log(10) - 1)
    assert two.seed_changes == pytest.approx(
        [by_hand("mamba", 1.14, seed) / by_hand("transformer", 1.1, seed) - 1 for seed in (0, 1)]
    )
    assert (two.signs, two.verdict) == ("++", NO)
    assert (absent.ours, absent.verdict, three.change, three.verdict) == (None, "not measured", None, "not measured")
    assert (four.base, four.signs, four.verdict) == ("three", "++", YES)


def test_a_row_that_is_no_step_of_a_ladder_is_held_against_the_first(run: Run, paper: Reference) -> None:
    result = dataclasses.replace(paper.results["table_1"], ladder=False)
    steps = Against(paper, result, run, Within(run), {}).steps()
    assert [step.base for step in steps] == [None, "one", "one", "one", "one"]
    assert [step.verdict for step in steps] == ["", NO, "not measured", NO, NO]


@pytest.mark.parametrize(
    ("printed", "change", "verdict"),
    [
        (-0.1, (-0.3, -0.4, -0.1), YES), (-0.1, (-0.3, -0.7, 0.1), UNSURE), (-0.1, (0.3, 0.1, 0.4), NO),
        (0.1, (0.3, 0.1, 0.4), YES), (0.1, (-0.3, -0.4, -0.1), NO), (0.1, (0.1, math.nan, math.nan), UNSURE),
        (0.0, (0.001, -0.001, 0.002), YES), (0.0, (0.0, -0.02, 0.02), UNSURE), (0.0, (0.02, 0.011, 0.03), NO),
    ],
)  # fmt: skip
def test_a_sign_reproduces_only_with_the_whole_interval(
    printed: float, change: tuple[float, float, float], verdict: str
) -> None:
    assert sign_verdict(printed, Interval(*change), same=0.01) == verdict


@pytest.mark.parametrize(("printed", "change"), [(-0.1, -0.05), (0.1, -0.05), (0.0, 0.005)])
def test_nothing_is_certain_that_a_seed_denies(printed: float, change: float) -> None:
    narrow = Interval(change, change - 0.001, change + 0.001)
    said = sign_verdict(printed, narrow, 0.01)
    assert said != UNSURE
    assert sign_verdict(printed, narrow, 0.01, [change, 2 * change, change - 0.001]) == said
    assert sign_verdict(printed, narrow, 0.01, [change, 0.06]) == UNSURE


def test_at_another_scale_the_table_says_so_and_compares_the_order(compared: list[Against]) -> None:
    found = table(compared, "against-table-1")
    assert not compared[0].same_scale
    assert compared[0].in_order() == (1, 6)
    assert "Run at another scale than the paper's" in found.caption
    assert "1 of 6 pairs of measured rows stand in the paper's order" in found.caption
    assert "0.802–0.803M parameters, 0.41M tokens of sotu, bytes as tokens, context 256" in found.caption
    assert "the mean of 2 seeds; 95 % intervals: paired bootstrap over documents, seeds fixed" in found.caption
    assert [row["place_paper"] for row in found.rows] == [5, 4, 3, 1, 2]
    assert [row["place_ours"] for row in found.rows] == [1, 2, None, 3, 4]
    assert found.marked == {1}
    assert "agrees" not in [column.key for column in found.columns]


def test_at_the_papers_scale_perplexity_is_held_to_the_tolerance(tmp_path: Path, paper: Reference) -> None:
    """Tokens of four bytes, the paper's size, budget and data; one model within one per cent, one beyond."""
    store = RecordStore(tmp_path)
    for name, perplexity in (("transformer", 10.05), ("mamba", 9.2)):
        nll = [np.full(400, math.log(perplexity))] * 6
        write_nll(tmp_path / f"{name}.parquet", nll, size=4)
        curve = PositionCurve(f"{name}.parquet", 6, 2400, 401, 256)
        for values in (Training(790_000, 409_600, 1, 256, [1], [1.0], 1, 1, ""), curve):
            store.append(Record(values.kind, name, name, 0, values=values))
    run = collect([tmp_path])
    (same, *_) = compare(run, [paper], {"data": {"source": "jsonl", "path": "texts/pile"}})
    assert same.same_scale
    assert [same.agrees(step) for step in same.steps()[:3]] == [True, False, None]
    found = table([same], "against-table-1")
    assert [row["agrees"] for row in found.rows] == ["yes", "no", None, None, None]
    assert "ours should lie within 1 % of the printed perplexity" in found.caption
    assert not compare(run, [paper], {"data": {"source": "sotu"}})[0].same_scale


def test_windows_of_the_training_length_are_taken_where_there_are_some(tmp_path: Path) -> None:
    write_nll(tmp_path / "a.parquet", [np.full(400, 1.0)] * 6)
    write_nll(tmp_path / "w.parquet", [np.full(400, 2.0)] * 6)
    store = RecordStore(tmp_path)
    store.append(Record("position", "m", "m", 0, values=PositionCurve("a.parquet", 6, 2400, 401, 256)))
    store.append(Record("window", "m", "m", 0, values=Window("w.parquet", 6, 2400, 256, 64, 256)))
    assert Within(collect([tmp_path])).log_perplexity("m").value == pytest.approx(1.0)
    store.append(Record("window", "m", "m", 0, values=Window("w.parquet", 6, 2400, 256, 256, 256)))
    within = Within(collect([tmp_path]))
    assert within.log_perplexity("m").value == pytest.approx(2.0)
    assert (within.convention, within.sums["m"].tokens.sum()) == ("window", 2400)


def test_claims_have_a_verdict_where_they_order_our_models(compared: list[Against]) -> None:
    rows = table(compared, "claims").rows
    assert [(row["where"], row.get("verdict")) for row in rows] == [
        ("Table 1", YES), ("Table 1", None), ("Figure 9", None)
    ]  # fmt: skip
    assert rows[0]["change"].high < 0
    assert "no number" in rows[2]["claim"]


def test_what_a_run_does_not_measure_is_quoted_and_said_to_be(compared: list[Against]) -> None:
    found = table(compared, "against-table-2")
    assert found.rows == [{"row": "one", "accuracy": 44.5}]
    assert "Quoted only" in found.caption


def test_the_figure_shows_each_step_with_its_interval(compared: list[Against]) -> None:
    with matplotlib.style.context(STYLE, after_reset=True):
        (figure,) = drawn(compared)
    left, right = figure.figure.axes
    steps = compared[0].steps()
    assert [text.get_text() for text in left.get_yticklabels()] == [step.row.name for step in steps]
    assert left.lines[0].get_xdata()[-1] == pytest.approx(100 * (math.log(8.1) / math.log(10) - 1))
    segments = [collection.get_segments()[0] for collection in right.collections]
    wanted = [[100 * step.change.low, 100 * step.change.high] for step in steps if step.change]
    assert [segment[:, 0].tolist() for segment in segments] == [pytest.approx(ends) for ends in wanted]
    assert [text.get_text() for text in right.texts] == ["", "no", "–", "–", "yes", "sign\nreproduces"]


def test_a_run_names_its_reference_and_the_command_another(
    tmp_path: Path, paper: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("transformer", "mamba"):
        write_nll(tmp_path / f"{name}.parquet", nll_of(name, 0, 6, 1.1))
        curve = PositionCurve(f"{name}.parquet", 6, 10_000, 2048, 256)
        RecordStore(tmp_path).append(Record(curve.kind, name, name, 0, values=curve))
    (tmp_path / "config.yaml").write_text(f"data: {{source: sotu}}\nreference: {paper.name}\n")
    assert main([str(tmp_path)]) == 0
    summary = (tmp_path / "report" / "summary.md").read_text()
    assert "**Ours against the paper: A ladder.** arXiv 2407.04620v4, Table 1" in summary
    assert "![Ours against the paper: A ladder](figures/against-table-1.png)" in summary
    assert main([str(tmp_path), "reference=ttt_table9"]) == 2
    assert "reference=ttt_table9: no such file" in capsys.readouterr().err
