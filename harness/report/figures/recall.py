"""Zero-shot recall: a heat map over length and depth for every model and task, and the slices with their intervals."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from harness.records import TextRecall
from harness.report.collect import Run
from harness.report.figures.axes import Drawn, LineEnd, context_axis, label_lines, linear_ticks, mark_failures, numbers
from harness.report.recall import Recall
from harness.report.style import DOUBLE, GREY, looks, readable
from harness.statistics import Estimate, Floats, Ints

GRADED = "repetition"  # drawn as gain: to have every byte of a passage right is asked of no small model
_MAP = "cividis"


def recall_map(run: Run, recalled: Recall) -> Drawn | None:
    """A row a model, a column a task: accuracy, or what a repeated passage saves, by length and depth."""
    if not recalled.models:
        return None
    models, tasks = recalled.models, recalled.tasks
    figure = Figure(figsize=(min(DOUBLE, 1.2 + 2.2 * len(tasks)), 1.0 * len(models) + 1.05), layout="constrained")
    grid = figure.subplots(len(models), len(tasks), squeeze=False, sharex=True, sharey=True)
    for column, task in zip(grid.T, tasks, strict=True):
        values = {name: _measure(recalled, name, task, recalled.cells).value for name in models}
        scale = Normalize(*_range(task, np.concatenate(list(values.values()))))
        for ax, name in zip(column, models, strict=True):
            cells = values[name].reshape(recalled.cells.shape).T
            mesh = ax.pcolormesh(cells, cmap=_MAP, norm=scale, edgecolors="face", linewidth=0.2)
            _frame(ax, recalled)
        column[0].set_title(task)
        column[-1].set_xlabel("context (tokens)")
        bar = figure.colorbar(mesh, ax=list(column), location="bottom", aspect=30, label=_label(task))
        assert bar.solids is not None
        bar.solids.set(rasterized=False, edgecolor="face")
        ticks = linear_ticks(scale.vmin or 0.0, scale.vmax or 1.0, fewest=3)
        bar.set_ticks(ticks, labels=numbers(ticks))
    for row, name in zip(grid, models, strict=True):
        row[0].set_ylabel("depth (%)")
        color = readable(looks(run.models)[name].color)
        row[-1].annotate(name, (1, 0.5), (6, 0), "axes fraction", "offset points", color=color, va="center")
    mark_failures(figure, [], run, TextRecall.kind)
    caption = (
        "Zero-shot recall by length of the context and depth of the key (0 %: at its beginning)."
        f"{_measures(tasks)}{_marked(recalled)} {recalled.describe()}."
    )
    return Drawn("recall-map", "Recall by length and depth", caption, figure)


def recall_slices(run: Run, recalled: Recall) -> Drawn | None:
    """Above by length, mean over depths; below by distance; a column a task."""
    if not recalled.models:
        return None
    tasks, columns = recalled.tasks, len(recalled.tasks)
    figure = Figure(figsize=(min(DOUBLE, 1.6 + 1.9 * columns), 4.2), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    ends: list[list[LineEnd]] = []
    for task, (upper, lower) in zip(tasks, grid.T, strict=True):
        slices, distances = recalled.by_distance(task)
        ends = [
            _lines(upper, run, recalled, task, recalled.by_length, np.array(recalled.lengths, float)),
            _lines(lower, run, recalled, task, slices, distances),
        ]
        upper.set_title(task)
        for ax, label in ((upper, "context (tokens)"), (lower, "distance (tokens)")):
            ax.set_xlabel(label)
            ax.set_ylabel(_label(task))
    if recalled.trained:
        for ax in grid[0]:
            ax.axvline(recalled.trained, color=GREY, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
    mark_failures(figure, [], run, TextRecall.kind)
    label_lines(figure, list(zip(grid[:, -1], ends, strict=True)))
    caption = (
        "Zero-shot recall by length of the context (above; mean over depths) and by distance, in octaves, from the "
        f"answer in the key to where it is asked for (below).{_measures(tasks)}{_marked(recalled)} "
        f"{recalled.describe()}."
    )
    return Drawn("recall-slices", "Recall by length and distance", caption, figure)


def _measure(recalled: Recall, name: str, task: str, slices: Ints) -> Estimate:
    return (recalled.gain if task == GRADED else recalled.accuracy)(name, task, slices)


def _lines(ax: Axes, run: Run, recalled: Recall, task: str, slices: Ints, x: Floats) -> list[LineEnd]:
    """A line with its band for every model, and where it ends."""
    look, ends, values = looks(run.models), [], []
    for name in recalled.models:
        found, (color, marker) = _measure(recalled, name, task, slices), look[name]
        ax.fill_between(x, found.low, found.high, color=color, alpha=0.16, linewidth=0)
        ax.plot(x, found.value, color=color, marker=marker)
        ends.append(LineEnd(name, float(x[-1]), float(found.value[-1]), color))
        values += [found.value, found.low, found.high]
    low, high = _range(task, np.concatenate(values))
    air = 0.04 * (high - low)
    ax.set_ylim(low - air, high + air)
    context_axis(ax, float(x[0]) / 2**0.25, float(x[-1]) * 2**0.25, "")
    return ends


def _range(task: str, values: Floats) -> tuple[float, float]:
    """0 … 1 for accuracy; around all finite values, and zero, for a gain."""
    if task != GRADED:
        return 0.0, 1.0
    finite = values[np.isfinite(values)]
    return min(float(finite.min()), 0.0), max(float(finite.max()), 0.1)


def _frame(ax: Axes, recalled: Recall) -> None:
    """Ticks at some lengths and depths, and a line behind the last length that is within training."""
    ax.grid(visible=False)
    every = -(-len(recalled.lengths) // 5)
    places = range(0, len(recalled.lengths), every)
    ax.set_xticks([k + 0.5 for k in places], [_short(recalled.lengths[k]) for k in places])
    rows = sorted({0, (len(recalled.depths) - 1) // 2, len(recalled.depths) - 1})
    ax.set_ylim(len(recalled.depths), 0)
    ax.set_yticks([k + 0.5 for k in rows], [str(recalled.depths[k]) for k in rows])
    within = sum(length <= recalled.trained for length in recalled.lengths) if recalled.trained else 0
    if 0 < within < len(recalled.lengths):
        ax.axvline(within, color="black", linewidth=1.2)
        ax.axvline(within, color="white", linewidth=1.2, linestyle=(0, (3, 2)))


def _short(length: int) -> str:
    return f"{length // 1024}k" if length >= 8192 and length % 1024 == 0 else str(length)


def _label(task: str) -> str:
    return "gain (bits per byte)" if task == GRADED else "accuracy"


def _measures(tasks: list[str]) -> str:
    """What is drawn, for the caption."""
    accuracy = " Accuracy: greedy decoding gives the whole answer." if set(tasks) - {GRADED} else ""
    gain = " Gain: what a passage costs less for having stood in the context before." if GRADED in tasks else ""
    return accuracy + gain


def _marked(recalled: Recall) -> str:
    return f" Dashed: the training length, {recalled.trained} tokens." if recalled.trained else ""
