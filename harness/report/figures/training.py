"""How the models learned: training loss against tokens seen."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.records import Training
from harness.report.collect import Run
from harness.report.curves import Curves
from harness.report.figures.axes import (
    Drawn,
    LineEnd,
    label_lines,
    linear_ticks,
    mark_failures,
    number,
    rescale,
    value_axis,
)
from harness.report.style import SINGLE, looks
from harness.report.summary import LOG2
from harness.report.view import AS_IS, SMOOTH, View
from harness.statistics import Floats


def training(run: Run, curves: Curves, view: View = AS_IS) -> Drawn | None:
    """Training loss against tokens: every logged interval faint, its running mean in full colour."""
    rows = [(row.record.model, row.record.values) for row in run.rows]
    found = [(name, values) for name, values in rows if isinstance(values, Training) and values.loss]
    if not found:
        return None
    figure = Figure(figsize=(SINGLE + 1.0, 2.6), layout="constrained")
    ax = figure.subplots()
    ends: dict[str, LineEnd] = {}
    for name, values in sorted(found, key=lambda pair: run.models.index(pair[0])):
        end = _curve(ax, name, looks(run.models)[name].color, values, view.smooth)
        if end:
            ends.setdefault(name, end)
    value_axis(ax, [loss for _, values in found for loss in running_mean(np.array(values.loss) / LOG2, view.smooth)])
    high = max(values.tokens_seen[-1] for _, values in found)
    ticks = linear_ticks(0, high)
    ax.set_xlim(0, high)
    ax.set_xticks(ticks, [number(tick) for tick in ticks])
    for along in ("x", "y"):
        rescale(ax, along, view, "training")
    ax.set_xlabel("training tokens")
    ax.set_ylabel(f"training loss (bits per {curves.unit})")
    mark_failures(figure, [ax], run, Training.kind)
    label_lines(figure, [(ax, list(ends.values()))])
    share = "a twentieth" if view.smooth == SMOOTH else f"{100 * view.smooth:g} % of them"
    caption = f"Training loss against tokens seen; faint: each logged interval, line: running mean over {share}."
    return Drawn("training", "Training curves", caption + (" One line a seed." if len(run.seeds) > 1 else ""), figure)


def _curve(ax: Axes, name: str, color: str, values: Training, share: float) -> LineEnd | None:
    """Draw one run, smoothed over a `share` of it; a cross where its loss stopped being finite."""
    tokens, loss = np.array(values.tokens_seen), np.array(values.loss) / LOG2
    smooth = running_mean(loss, share)
    ax.plot(tokens, loss, color=color, linewidth=0.5, alpha=0.25)
    ax.plot(tokens, smooth, color=color)
    whole = np.flatnonzero(np.isfinite(smooth))
    if not len(whole):
        return None
    last = whole[-1]
    if last < len(smooth) - 1:
        ax.plot(tokens[last], smooth[last], "x", color=color, markersize=5, markeredgewidth=1.2)
    return LineEnd(name, float(tokens[last]), float(smooth[last]), color)


def running_mean(values: Floats, share: float = SMOOTH) -> Floats:
    """Centred mean over a `share` of the values, over as many as there are at the ends."""
    half = int(len(values) * share / 2)
    mean = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
    return np.array(mean)
