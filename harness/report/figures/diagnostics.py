"""What models reported of themselves while reading: a row a model, a column a group of curves."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from harness.records import Diagnostics
from harness.report.collect import Run
from harness.report.figures.axes import Drawn, linear_ticks, number
from harness.report.style import DOUBLE, GREY

_SERIES = (("#000000", ":"), ("#0072B2", "-"), ("#D55E00", "--"))


def diagnostics(run: Run) -> Drawn | None:
    """Each group's series against position, mean over layers and seeds; nothing where no family reports any."""
    found = {name: [v for v in run.values(Diagnostics, name) if v.curves] for name in run.models}
    found = {name: values for name, values in found.items() if values}
    if not found:
        return None
    groups = list(dict.fromkeys(key.split(": ")[0] for values in found.values() for key in values[0].curves))
    figure = Figure(figsize=(DOUBLE, 1.75 * len(found) + 0.2), layout="constrained")
    grid = figure.subplots(len(found), len(groups), squeeze=False, sharex=True)
    for row, (name, values) in zip(grid, found.items(), strict=True):
        for ax, group in zip(row, groups, strict=True):
            keys = [key for key in values[0].curves if key.startswith(f"{group}: ")]
            if not keys:
                ax.set_axis_off()
                continue
            for key, (color, line) in zip(keys, _SERIES if len(keys) > 1 else _SERIES[1:], strict=False):
                mean = np.mean([value.curves[key] for value in values], axis=(0, 1))
                position = (np.arange(len(mean)) + 0.5) * values[0].stride
                ax.plot(position, mean, line, color=color, linewidth=1.0, label=key.split(": ")[1])
            ticks = linear_ticks(0, len(mean) * values[0].stride)
            ax.set_xticks(ticks, [number(tick) for tick in ticks])
            ax.set_title(f"{name}: {group}", fontsize=7.5, loc="left")
            if len(keys) > 1:
                ax.legend(fontsize=6, frameon=False, labelcolor=GREY)
    for ax in grid[-1]:
        ax.set_xlabel("position (tokens)")
    first = next(iter(found.values()))[0]
    caption = (
        f"What models report of themselves on {first.documents} test documents: mean over layers, each point the mean "
        f"of {first.stride} tokens. Each layer stands in the table of diagnostics."
    )
    return Drawn("diagnostics", "Diagnostics", caption, figure)
