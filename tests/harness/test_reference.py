"""What papers print, as data: every file loads, its numbers agree with each other, and a wrong one is one line."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness.config import RunConfig
from harness.config_errors import CONF
from harness.reference import FOLDER, Claim, Quantity, Result, Row, available, check, load
from harness.run import own_folder

LADDER = "ttt_table1"


@pytest.mark.parametrize("name", available())
def test_every_file_says_where_its_numbers_come_from_and_has_none_of_plots(name: str) -> None:
    reference = load(name)
    assert reference.paper.title
    assert reference.paper.arxiv.replace(".", "").isdigit()
    for result in reference.results.values():
        assert result.where
        assert result.title
        assert all(set(row.values) == set(result.quantities) for row in result.rows)
        assert all(math.isfinite(value) for row in result.rows for value in row.values.values())
        assert (result.obtained == "plot") == (not result.rows)


def test_the_ladder_adds_up_from_the_first_row_to_the_last() -> None:
    (result,) = load(LADDER).results.values()
    values = [row.values["perplexity"] for row in result.rows]
    steps = [row.differences["perplexity"] for row in result.rows[1:]]
    assert len(values) == 8
    assert (values[0], values[-1]) == (15.91, 11.09)
    assert values[0] + sum(steps) == pytest.approx(values[-1])
    assert list(itertools.accumulate(steps, initial=values[0])) == pytest.approx(values)


def test_our_sizes_are_those_of_table_3() -> None:
    for row in load("ttt_table3.table_3").results["table_3"].rows:
        size = OmegaConf.load(CONF / "size" / f"{row.name.lower()}.yaml")
        assert (size.num_layers, size.hidden_size) == (row.values["blocks"], row.values["width"])
        assert size.hidden_size / size.head_dim == row.values["heads"]
        assert row.values["steps"] * 0.5e6 == pytest.approx(row.values["tokens"], rel=0.05)


def test_plots_are_listed_with_what_the_text_claims() -> None:
    figures = load("ttt_plots").results
    assert {name.split("_")[1] for name in figures} >= {"2", "7", "10", "11", "12", "15", "16"}
    assert figures["figure_10_pile_8k"].claims[0].order == [["ttt_linear", "mamba"], ["ttt_mlp", "mamba"]]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("-0.36", "-0.34", "row + learnable η: perplexity is -0.34 from the row before in print, not so here"),
        ("obtained: table", "obtained: guessed", "obtained=guessed: choose from table, text, plot"),
        ("obtained: table", "obtained: plot", "a plot has no rows"),
        ("tolerance: 0.01", "tolerance: -1", "a tolerance and a rounding of at least 0"),
        ("    ladder: true", "    laddder: true", "laddder: no such key; choose one of claims, ladder, obtained"),
        ("{perplexity: 15.91}", "{ppl: 15.91}", "row linear attention: no such quantity ppl"),
        ("{perplexity: 15.91}", "{perplexity: low}", "Value 'low'"),
        ("model: plus_mamba_backbone", "model: plus_mini_batch", "model plus_mini_batch occurs twice"),
        ("paper:", "paper: [", "ttt_table1.yaml: "),
    ],
)
def test_a_fault_in_a_file_is_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = (FOLDER / f"{LADDER}.yaml").read_text()
    assert old in text
    path = tmp_path / f"{LADDER}.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"^ttt_table1\.yaml: ") as error:
        load(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_reference_is_named_by_file_part_or_path(tmp_path: Path) -> None:
    assert list(load("ttt_plots.figure_15").results) == ["figure_15"]
    own = tmp_path / "own.yaml"
    own.write_text((FOLDER / f"{LADDER}.yaml").read_text())
    assert load(str(own)).results == load(LADDER).results
    with pytest.raises(ValueError, match=r"reference=ttt_table9: no such file; .* one of lact, titans_table1, "):
        load("ttt_table9")
    with pytest.raises(ValueError, match="has no result table_2; choose from table_1"):
        load("ttt_table1.table_2")


def test_a_reference_that_is_about_other_models_is_refused() -> None:
    check(LADDER, ["plus_mini_batch"])
    check("ttt_table3", ["anything"])
    with pytest.raises(ValueError, match=r"speaks of .*ttt_equivalence, none of which is in model=\[lstm,gru\]"):
        check(LADDER, ["lstm", "gru"])


def test_pairs_are_pairs() -> None:
    with pytest.raises(ValueError, match="a pair"):
        Claim("x", [["a"]])
    with pytest.raises(ValueError, match="row a occurs twice"):
        Result("x", "text", "x", quantities={"v": Quantity("u", 0)}, rows=[Row("a"), Row("a")])


def test_it_stands_in_the_runs_config_and_does_not_make_another_run_of_it(config: RunConfig) -> None:
    named = dataclasses.replace(config, reference=LADDER)
    assert named.hash == config.hash
    with own_folder(config) as folder:
        plain = (folder / "config.yaml").read_text()
        assert "reference" not in plain
    with own_folder(named) as folder:
        assert (folder / "config.yaml").read_text() == plain + f"reference: {LADDER}\n"
    with own_folder(config) as folder:
        assert (folder / "config.yaml").read_text() == plain
