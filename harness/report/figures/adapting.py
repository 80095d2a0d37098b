"""Frozen and adapting: the two curves of every model, and the paired difference between them."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from harness.records import Dynamic
from harness.report.adapting import FROZEN, Adapting
from harness.report.collect import Run
from harness.report.figures.axes import Drawn, LineEnd, context_axis, label_lines, mark_failures, rescale, value_axis
from harness.report.style import DOUBLE, GREY, looks
from harness.report.summary import describe
from harness.report.view import AS_IS, View


def dynamic(run: Run, adapting: Adapting, view: View = AS_IS) -> Drawn | None:
    """Perplexity by position, dashed frozen and solid adapting; beside it adapting less frozen."""
    if not adapting.models:
        return None
    figure = Figure(figsize=(DOUBLE, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    look, shown = looks(run.models), adapting.shown
    x, values = adapting.middles[shown], []
    ends: tuple[list[LineEnd], list[LineEnd]] = ([], [])
    right.axhline(0, color=GREY, linewidth=1.0)
    for name in adapting.models:
        color, marker = look[name]
        frozen = np.exp(adapting.log_perplexity(name + FROZEN).value[shown])
        nats, change = adapting.log_perplexity(name), adapting.difference(name, name + FROZEN)
        middle, low, high = (np.exp(part[shown]) for part in (nats.value, nats.low, nats.high))
        left.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
        left.plot(x, frozen, color=color, linestyle="--", linewidth=0.9)
        left.plot(x, middle, color=color, marker=marker)
        right.fill_between(x, change.low[shown], change.high[shown], color=color, alpha=0.16, linewidth=0)
        right.plot(x, change.value[shown], color=color, marker=marker)
        ends[0].append(LineEnd(name, x[-1], middle[-1], color))
        ends[1].append(LineEnd(name, x[-1], float(change.value[shown][-1]), color))
        values += [frozen, low, middle, high]
    value_axis(left, list(np.concatenate(values)))
    rescale(left, "y", view, "adapting")
    left.set_ylabel(f"perplexity per {adapting.unit}")
    right.set_ylabel(f"adapting − frozen (nats per {adapting.unit})")
    for ax in (left, right):
        context_axis(ax, float(adapting.edges[shown[0]]), float(adapting.edges[shown[-1] + 1]), "position (tokens)")
        rescale(ax, "x", view, "adapting")
    mark_failures(figure, [left, right], run, Dynamic.kind)
    label_lines(figure, [(left, ends[0]), (right, ends[1])])
    caption = (
        f"Perplexity per {adapting.unit} against position in the document, {describe(adapting)}. Solid: weights adapt "
        "to what was read; dashed: the same reading with frozen weights. Right: the paired difference; below zero, "
        "adapting helps."
    )
    return Drawn("adapting", "Adapting and frozen", caption, figure)
