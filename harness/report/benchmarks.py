"""What lm-eval found: one row a task and metric, one column a model."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np

from harness.records import LmEval
from harness.report import formats
from harness.report.collect import Run
from harness.report.formats import Interval
from harness.report.tables import Column, Table
from harness.statistics import LEVEL

STDERR = "_stderr"


def benchmarks(run: Run) -> Table | None:
    """Each metric with the interval of lm-eval's standard error over samples, mean over seeds."""
    found = {name: values for name in run.models if (values := run.values(LmEval, name))}
    if not found:
        return None
    first = next(iter(found.values()))[0]
    rows: list[dict[str, Any]] = []
    for task, metrics in first.results.items():
        for metric in [metric for metric in metrics if not metric.endswith(STDERR)]:
            row: dict[str, Any] = {"task": task, "metric": metric, "samples": first.samples.get(task)}
            row["fewshot"] = first.fewshot.get(task)
            rows.append(row | {name: _mean(values, task, metric) for name, values in found.items()})
    columns = [
        Column("task", "task", text=True),
        Column("metric", "metric", text=True),
        Column("samples", "samples"),
        Column("fewshot", "shots"),
        *(Column(name, name, formats.interval) for name in found),
    ]
    caption = "Tasks of lm-eval, no chat template; 95 % intervals from its standard error over samples, seeds fixed."
    return Table("lm-eval", "Benchmarks", caption, columns, rows)


def _mean(values: list[LmEval], task: str, metric: str) -> Interval | None:
    cells = [v.results.get(task, {}) for v in values]
    if any(metric not in cell for cell in cells):
        return None
    value = float(np.mean([cell[metric] for cell in cells]))
    error = float(np.mean([cell.get(metric + STDERR, np.nan) for cell in cells]))
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    return Interval(value, value - half, value + half)
