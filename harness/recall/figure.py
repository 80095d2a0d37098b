"""The figure of a recall folder, drawn from its records alone: accuracy against the size of the task."""

from __future__ import annotations

from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from harness.recall.tasks import TASKS
from harness.records import Recall, RecordStore
from harness.report.figures.axes import LineEnd, context_axis, label_lines
from harness.report.style import DOUBLE, GREY, STYLE, looks, rank

_METADATA = {"svg": {"Date": None}, "png": {"Software": None}}


def recalled(folder: Path) -> dict[str, list[Recall]]:
    """What each model recalled, by seed; ValueError where there is nothing, or rows of several tasks."""
    rows = {(r.model, r.seed): r.values for r in RecordStore(folder) if isinstance(r.values, Recall)}
    if not rows:
        raise ValueError(f"no recall in {folder}: its records.jsonl has no such row")
    if len({(values.task, tuple(values.sizes)) for values in rows.values()}) > 1:
        raise ValueError(f"{folder} holds rows of several tasks or sizes: give each a folder of its own")
    names = sorted({name for name, _ in rows}, key=rank)
    return {name: [values for (model, _), values in sorted(rows.items()) if model == name] for name in names}


def draw(folder: Path) -> Path:
    """Draw `recall.svg` and `recall.png` in `folder`; the path of the second."""
    found = recalled(folder)
    first = next(iter(found.values()))[0]
    with matplotlib.style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(0.75 * DOUBLE, 2.6), layout="constrained")
        ax, look, ends = figure.subplots(), looks(list(found)), []
        for name, values in found.items():
            mean = np.mean([value.accuracy for value in values], axis=0)
            ax.plot(first.sizes, mean, color=look[name].color, marker=look[name].marker, clip_on=False, zorder=3)
            label = f"{name} ({values[0].state_bytes / 1024:.3g} KiB)"
            ends.append(LineEnd(label, first.sizes[-1], float(mean[-1]), look[name].color))
        ax.axhline(first.chance, color=GREY, linewidth=0.6, linestyle="dotted")
        context_axis(ax, first.sizes[0], first.sizes[-1], TASKS[first.task].unit)
        ax.set(ylim=(0, 1), ylabel="accuracy")
        label_lines(figure, [(ax, ends)])
        for kind, metadata in _METADATA.items():
            figure.savefig(folder / f"recall.{kind}", metadata=metadata)
    return folder / "recall.png"
