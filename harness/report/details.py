"""The tables behind the summary: each seed, every context bucket, every diagnostic."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness import statistics
from harness.records import Diagnostics
from harness.report import formats
from harness.report.collect import Run
from harness.report.curves import Curves
from harness.report.formats import Interval
from harness.report.summary import LOG2, at, bits, describe, exponential
from harness.report.tables import Column, Table


def seeds(run: Run, curves: Curves) -> Table | None:
    """Each seed's bits per byte, and the t-interval over seeds: what the band over documents leaves out."""
    names = [name for name in run.models if name in curves.names and len(curves.sums[name].nll) > 1]
    if not names:
        return None
    rows = []
    for name in names:
        values = curves.seed_nats_per_byte(name) / LOG2
        low, high = statistics.seed_interval(values)
        row: dict[str, Any] = {"model": name, "mean": Interval(float(values.mean()), low, high)}
        rows.append(row | {f"seed_{seed}": float(v) for seed, v in zip(curves.sums[name].nll, values, strict=True)})
    columns = [
        Column("model", "model", text=True),
        *(Column(f"seed_{seed}", f"seed {seed}", lambda v: formats.significant(v, 4)) for seed in run.seeds),
        Column("mean", "mean [95 % t-interval over seeds]", formats.interval),
    ]
    caption = "Bits per byte over all scored tokens. The interval is over seeds, with the documents fixed."
    return Table("seeds", "Seeds", caption, columns, rows)


def all_buckets(curves: Curves) -> Table | None:
    """Every bucket of every model and floor."""
    if not curves.names:
        return None
    rows = []
    for name in curves.names:
        nats = curves.log_perplexity(name)
        difference = curves.difference(name, curves.names[0])
        for k in range(len(curves.edges) - 1):
            row = {"model": name, "from": int(curves.edges[k]), "to": int(curves.edges[k + 1]) - 1}
            row |= {"documents": int(nats.documents[k]), "perplexity": exponential(at(nats, k))}
            rows.append(row | {"bits": bits(at(nats, k)), "difference": at(difference, k)})
    columns = [
        Column("model", "model", text=True),
        Column("from", "context from"),
        Column("to", "to"),
        Column("documents", "documents"),
        Column("perplexity", f"ppl/{curves.unit}", formats.interval),
        Column("bits", f"bits/{curves.unit}", formats.interval),
        Column("difference", f"Δ from {curves.names[0]} (nats)", formats.interval),
    ]
    caption = f"On {describe(curves)}; documents: those long enough to reach the bucket."
    return Table("curves", "Every context", caption, columns, rows, folded=True)


def all_diagnostics(run: Run) -> Table | None:
    """The curves that models report of themselves, layer by layer: where they begin and where they end."""
    rows = [
        {
            "model": name, "curve": curve, "layer": layer,
            "first": points[0], "last": float(np.mean(points[3 * len(points) // 4 :])),
        }
        for name in run.models
        for values in run.values(Diagnostics, name)[:1]
        for curve, layers in values.curves.items()
        for layer, points in enumerate(layers)
    ]  # fmt: skip
    columns = [
        Column("model", "model", text=True),
        Column("curve", "curve", text=True),
        Column("layer", "layer"),
        Column("first", "first point", formats.significant),
        Column("last", "last quarter", formats.significant),
    ]
    caption = "Of the first seed; every point of every layer lies in records.jsonl."
    return Table("diagnostics", "Every diagnostic", caption, columns, rows, folded=True) if rows else None
