"""Ours against a paper's, row by row: how far down the ladder each has come, and what each step changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.against import MISSING, NO, UNSURE, YES, Against, Step
from harness.report.figures.axes import Drawn, linear_ticks, numbers
from harness.report.style import DOUBLE, GREY
from harness.report.summary import describe

PAPER, OURS = "#777777", "#0072B2"
VERDICTS = {YES: "yes", NO: "no", UNSURE: "?", MISSING: "–", "": ""}


def against(compared: Sequence[Against]) -> list[Drawn]:
    """A figure for every result with at least two rows of ours."""
    return [_draw(each) for each in compared if each.compared and sum(s.change is not None for s in each.steps()) > 0]


def _draw(each: Against) -> Drawn:
    steps = each.steps()
    figure = Figure(figsize=(DOUBLE, 0.23 * len(steps) + 1.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.3])
    _levels(left, steps)
    _changes(right, steps)
    left.set_yticks(range(len(steps)), [step.row.name for step in steps])
    left.set_ylim(len(steps) - 0.5, -0.5)
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
    before = "the row before" if each.result.ladder else "the first row"
    caption = (
        f"{each.reference.cite(each.result)} (grey diamonds: {each.result.setting}) and ours (blue: {each.ours()}; "
        f"{describe(each.within)}). Left: the loss (log-perplexity) less that of the first row, in per cent of it. "
        f"Right: change from {before}, with the paired interval of ours; ticks below: single seeds; in the margin: "
        "whether the paper's sign reproduces (?: not certain, –: not measured)."
        f"{'' if each.same_scale else ' Run at another scale than the paper: order and sign are what can be compared.'}"
    )
    name = "against-" + next(key for key, found in each.reference.results.items() if found is each.result)
    return Drawn(name.replace("_", "-"), f"Ours against the paper: {each.result.title}", caption, figure)


def _levels(ax: Axes, steps: Sequence[Step]) -> None:
    """The loss of every row as a share of that of the first row that we have."""
    first = next(step for step in steps if step.ours)
    rows = [i for i, step in enumerate(steps) if step.ours]
    assert first.ours is not None
    ours = [100 * (np.log(step.ours.value) / np.log(first.ours.value) - 1) for step in steps if step.ours]
    paper = [100 * (np.log(step.printed) / np.log(first.printed) - 1) for step in steps]
    ax.plot(paper, range(len(steps)), "D-", color=PAPER, markersize=3.5, linewidth=0.8, fillstyle="none",
            markeredgewidth=0.9, label="paper")  # fmt: skip
    ax.plot(ours, rows, "o-", color=OURS, label="ours")
    _percent_axis(ax, [*paper, *ours], "loss against the first row (%)")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=7, frameon=False, borderaxespad=0.1)


def _changes(ax: Axes, steps: Sequence[Step]) -> None:
    """Each step's change with interval and seeds, beside the paper's."""
    ax.axvline(0, color=GREY, linewidth=0.8)
    values: list[float] = []
    for i, step in enumerate(steps):
        if step.printed_change is not None:
            ax.plot(100 * step.printed_change, i - 0.17, "D", color=PAPER, fillstyle="none", markeredgewidth=0.9)
            values.append(100 * step.printed_change)
        ax.annotate(
            VERDICTS[step.verdict], (1, i), (5, 0), ("axes fraction", "data"), "offset points", va="center",
            fontsize=7.5, color="#b00020" if step.verdict == NO else "black",
        )  # fmt: skip
        if step.change is None:
            continue
        low, high = 100 * step.change.low, 100 * step.change.high
        ax.hlines(i + 0.08, low, high, color=OURS, linewidth=1.2)
        ax.plot(100 * step.change.value, i + 0.08, "o", color=OURS)
        if len(step.seed_changes) > 1:
            seeds = [100 * change for change in step.seed_changes]
            ax.plot(seeds, [i + 0.28] * len(seeds), "|", color=OURS, markersize=3, markeredgewidth=0.8)
            values += seeds
        values += [low, high, 100 * step.change.value]
    _percent_axis(ax, values, "change of the loss by the step (%)")
    ax.annotate(
        "sign\nreproduces", (1, 1), (5, -1), "axes fraction", "offset points", va="bottom", fontsize=7, color=GREY
    )


def _percent_axis(ax: Axes, values: Sequence[float], label: str) -> None:
    finite = [value for value in values if np.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    air = 0.06 * (high - low or 1.0)
    ticks = linear_ticks(low - air, high + air)
    ax.set_xlim(low - air, high + air)
    ax.set_xticks(ticks, [text.replace("-", "−") for text in numbers(ticks)])
    ax.set_xlabel(label)
