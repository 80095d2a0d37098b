"""Numbers on the page: digits that the interval supports, units, and what is not finite."""

from __future__ import annotations

import math

import pytest

from harness.records import Check
from harness.report import formats
from harness.report.formats import Interval
from harness.report.tables import Column, Table, to_csv, to_latex, to_markdown


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (4.1234, 4.011, 4.239, "4.12 [4.01, 4.24]"),
        (4.1234, 3.2, 5.1, "4.12 [3.20, 5.10]"),
        (-0.04219, -0.0514, -0.033, "−0.0422 [−0.0514, −0.0330]"),
        (1234.5, 1100.0, 1350.0, "1230 [1100, 1350]"),
        (0.001, -0.2, 0.2, "0.00 [−0.20, 0.20]"),
        (2.71828, math.nan, math.nan, "2.72"),
        (math.nan, math.nan, math.nan, "NaN"),
        (math.inf, math.nan, math.nan, "∞"),
        (0.0, 0.0, 0.0, "0"),
    ],
)
def test_interval(value: float, low: float, high: float, text: str) -> None:
    assert formats.interval(Interval(value, low, high)) == text


def test_plus_minus_is_half_the_width() -> None:
    assert formats.plus_minus(Interval(4.1234, 4.011, 4.239)) == "4.12 ±0.11"


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.14159, "3.14"), (99.96, "100"), (12345.6, "12,300"), (0.00123, "0.00123"), (3.1e-7, "3.10e−7"), (2e9, "2.00e9"),
     (-0.5, "−0.500"), (0.0, "0"), (None, "–"), (math.nan, "NaN"), (-math.inf, "−∞")],
)  # fmt: skip
def test_significant(value: float | None, text: str) -> None:
    assert formats.significant(value) == text


def test_rate_shows_no_more_digits_than_it_supports() -> None:
    assert formats.rate(Interval(12_345.0, 12_344.0, 12_346.0)) == "12,300"
    assert formats.rate(Interval(12_345.0, 8_000.0, 16_000.0)) == "12,300"
    assert formats.rate(Interval(12_345.0, 0.0, 40_000.0)) == "12,000"


@pytest.mark.parametrize(
    ("value", "text"),
    [(512, "512 B"), (1024, "1.00 KiB"), (1023, "0.999 KiB"), (81_920, "80.0 KiB"), (2**23, "8.00 MiB"), (None, "–")],
)  # fmt: skip
def test_size(value: int | None, text: str) -> None:
    assert formats.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(812, "812"), (801_536, "802 k"), (999_999, "1.00 M"), (1_236_000, "1.24 M")]
)
def test_count(value: int, text: str) -> None:
    assert formats.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.42, "0.42 s"), (48.13, "48.1 s"), (423.2, "7 min 03 s"), (9000, "2 h 30 min"), (None, "–")]
)
def test_seconds(value: float | None, text: str) -> None:
    assert formats.seconds(value) == text


@pytest.fixture
def table() -> Table:
    columns = [Column("model", "model", text=True), Column("ppl", "ppl", formats.interval), Column("check", "check")]
    rows = [
        {"model": "a_b|c", "ppl": Interval(4.0, 3.9, 4.2), "check": Check("x", False, 0.5, 0.1)},
        {"model": "50 % & more"},
    ]
    return Table("t", "Title", "A caption.", columns, rows, rule=1)


def test_csv_is_raw_and_spreads_intervals(table: Table) -> None:
    lines = to_csv(table).splitlines()
    assert lines[0] == "model,ppl,ppl_low,ppl_high,check,check_bound,check_passed"
    assert lines[1] == "a_b|c,4,3.9,4.2,0.5,0.1,False"
    assert lines[2] == "50 % & more,,,,,,"


def test_markdown_escapes_pipes_and_aligns_numbers(table: Table) -> None:
    lines = to_markdown(table).splitlines()
    assert lines[0] == "**Title.** A caption."
    assert lines[3] == "| --- | ---: | ---: |"
    assert lines[4].startswith("| a_b\\|c | 4.00 [3.90, 4.20] |")


def test_latex_is_booktabs_and_escaped(table: Table) -> None:
    lines = to_latex(table).splitlines()
    assert lines[1:4] == [r"\begin{tabular}{lrr}", r"\toprule", r"model & ppl & check \\"]
    assert lines[5].startswith(r"a\_b|c & 4.00 {[}3.90, 4.20] & ")
    assert lines[6] == r"\midrule"
    assert lines[7] == r"50 \% \& more & -- & -- \\"
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
