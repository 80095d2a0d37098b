"""How well the models predict: perplexity against context, and each model's paired difference from the first."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from harness.records import FixedTarget, PositionCurve
from harness.report.collect import Run
from harness.report.contexts import Contexts
from harness.report.curves import Curves
from harness.report.figures.axes import (
    Drawn,
    LineEnd,
    context_axis,
    label_lines,
    linear_ticks,
    mark_failures,
    numbers,
    rescale,
    value_axis,
)
from harness.report.paired import Paired
from harness.report.style import DOUBLE, FLOOR_DASHES, GREY, SINGLE, looks
from harness.report.summary import describe
from harness.report.view import AS_IS, View


def position(run: Run, curves: Curves, view: View = AS_IS) -> Drawn | None:
    """Perplexity by context with bands; beside it each model's paired difference from the first."""
    if not curves.names:
        return None
    hidden = len(curves.edges) - 1 - len(curves.shown)
    few = " Contexts that fewer than 5 documents reach are left to the table." if hidden else ""
    caption = f"Perplexity per {curves.unit} against context, {describe(curves)}.{{details}}{few}"
    return _draw(run, curves, PositionCurve.kind, "perplexity", "Perplexity against context", caption, view)


def fixed_target(run: Run, contexts: Contexts, view: View = AS_IS) -> Drawn | None:
    """The same, of the same target tokens at every context."""
    if not contexts.names:
        return None
    targets = int(contexts.sums[contexts.names[0]].tokens[:, 0].sum())
    caption = (
        f"Perplexity per {contexts.unit} of the same {targets:,} target {contexts.unit}s given c to c + 15 "
        f"{contexts.unit}s before them, {describe(contexts)}.{{details}}"
    )
    title = "Perplexity of the same targets given more context"
    return _draw(run, contexts, FixedTarget.kind, "fixed-target", title, caption, view)


def _draw(run: Run, curves: Paired, kind: str, name: str, title: str, caption: str, view: View) -> Drawn:
    """Both panels; what they hold goes into the caption in place of `{details}`."""
    models = [name for name in run.models if name in curves.names]
    paired = len(models) > 1
    figure = Figure(figsize=(DOUBLE if paired else SINGLE, 2.8), layout="constrained")
    grid = figure.subplots(1, 2 if paired else 1, width_ratios=[1.25, 1] if paired else None, squeeze=False)
    panels: list[Axes] = list(grid[0])
    ends = [_perplexity(panels[0], run, curves, models)]
    rescale(panels[0], "y", view, name)
    _bits_axis(panels[0], f"bits per {curves.unit}")
    if paired:
        ends.append(_differences(panels[1], run, curves, models))
    first, last = curves.shown[0], curves.shown[-1]
    for ax in panels:
        context_axis(ax, float(curves.edges[first]), float(curves.edges[last + 1]), f"context ({curves.unit}s)")
        rescale(ax, "x", view, name)
        _training_length(ax, {curves.sums[name].train_length for name in models})
    mark_failures(figure, panels, run, kind)
    label_lines(figure, list(zip(panels, ends, strict=True)))
    details = f" Right: difference from {models[0]}, paired over documents; below zero is better." if paired else ""
    details += " Faint points: single seeds." if any(len(curves.sums[name].nll) > 1 for name in models) else ""
    details += " Grey: interpolated n-grams, which any trained model should beat." if run.floors else ""
    return Drawn(name, title, caption.format(details=details), figure)


def _perplexity(ax: Axes, run: Run, curves: Paired, models: list[str]) -> list[LineEnd]:
    look, ends, shown = looks(run.models), [], curves.shown
    x, values = curves.middles[shown], []
    for name in models:
        nats, (color, marker) = curves.log_perplexity(name), look[name]
        middle, low, high = (np.exp(part[shown]) for part in (nats.value, nats.low, nats.high))
        ax.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
        ax.plot(x, middle, color=color, marker=marker)
        seeds = np.exp(curves.seeds(name)[1][:, shown])
        if len(seeds) > 1:
            ax.plot(np.broadcast_to(x, seeds.shape).T, seeds.T, ".", color=color, alpha=0.45, markersize=2.2)
        ends.append(LineEnd(name, x[-1], middle[-1], color))
        values += [middle, low, high]
    for name, dashes in zip([n for n in run.floors if n in curves.names], FLOOR_DASHES * 9, strict=False):
        middle = np.exp(curves.log_perplexity(name).value[shown])
        ax.plot(x, middle, color=GREY, linestyle=dashes, linewidth=0.8)
        ends.append(LineEnd(name, x[-1], middle[-1], GREY))
        values.append(middle)
    value_axis(ax, list(np.concatenate(values)))
    ax.set_ylabel(f"perplexity per {curves.unit}")
    return ends


def _bits_axis(ax: Axes, label: str) -> None:
    """The same scale in bits, to the left of the perplexities: log2 of them; none where the axis begins at 0."""
    if ax.get_ylim()[0] <= 0:
        return
    bits = ax.secondary_yaxis("left", functions=(np.log2, np.exp2))
    bits.spines["left"].set_position(("outward", 38))
    low, high = np.log2(ax.get_ylim())
    ticks = linear_ticks(float(low), float(high))
    bits.set_yticks(ticks, numbers(ticks))
    bits.yaxis.set_minor_locator(NullLocator())
    bits.set_ylabel(label, color=GREY)
    bits.tick_params(colors=GREY)
    bits.spines["left"].set_color(GREY)


def _differences(ax: Axes, run: Run, curves: Paired, models: list[str]) -> list[LineEnd]:
    look, shown = looks(run.models), curves.shown
    x = curves.middles[shown]
    ax.axhline(0, color=look[models[0]].color, linewidth=1.2)
    ends = [LineEnd(models[0], x[-1], 0.0, look[models[0]].color)]
    for name in models[1:]:
        nats, (color, marker) = curves.difference(name, models[0]), look[name]
        ax.fill_between(x, nats.low[shown], nats.high[shown], color=color, alpha=0.16, linewidth=0)
        ax.plot(x, nats.value[shown], color=color, marker=marker)
        ends.append(LineEnd(name, x[-1], float(nats.value[shown][-1]), color))
    ax.set_ylabel(f"Δ log-perplexity (nats per {curves.unit})")
    return ends


def _training_length(ax: Axes, lengths: set[int | None]) -> None:
    known = sorted(length for length in lengths if length is not None)
    for i, length in enumerate(known):
        ax.axvline(length, color=GREY, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
        text = str(length) if i else f"trained at {length}"
        first_of_several = len(known) > 1 and i == 0
        ax.annotate(
            text, (length, 1), (7 if first_of_several else 0, 2), ("data", "axes fraction"), "offset points",
            fontsize=7, color=GREY, ha="right" if first_of_several else "center", va="bottom",
        )  # fmt: skip
