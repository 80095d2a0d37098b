"""Tables of time alone: every timed shape, and decoding by batch."""

from __future__ import annotations

from typing import Any

from harness.measure.drift import BOUND, CERTAINTY
from harness.records import Decode
from harness.report import formats
from harness.report.collect import Run
from harness.report.tables import Column, Table
from harness.report.timings import KINDS, batches, longest_common, timings


def decode_by_batch(run: Run) -> Table | None:
    """Milliseconds a step and tokens a second at every batch, after the longest context that all were timed at."""
    sizes = batches(run, Decode)
    found = {batch: {name: timings(run, Decode, name, batch) for name in run.models} for batch in sizes}
    context = longest_common({f"{name} {size}": at for size in sizes for name, at in found[size].items()})
    if len(sizes) < 2 or context is None:
        return None
    rows: list[dict[str, Any]] = []
    for name in run.models:
        steps = {batch: found[batch][name][context] for batch in sizes if context in found[batch][name]}
        if steps:
            cells: dict[str, Any] = {"model": name, "state_bytes": steps[max(steps)].state_bytes}
            cells |= {f"ms_{batch}": timing.milliseconds(50) for batch, timing in steps.items()}
            rows.append(cells | {f"rate_{batch}": timing.median_throughput for batch, timing in steps.items()})
    columns = [
        Column("model", "model", text=True),
        *(Column(f"ms_{batch}", f"ms a step at {batch}", formats.significant) for batch in sizes),
        *(Column(f"rate_{batch}", f"tokens/s at {batch}", formats.rate) for batch in sizes),
        Column("state_bytes", f"state at {sizes[-1]}", formats.size),
    ]
    caption = f"Single-token steps of so many rows at once after {context} tokens of context, median."
    return Table("decode-batches", "Decoding by batch", caption, columns, rows)


def all_timings(run: Run) -> Table | None:
    """Every timed shape of every model; what is to be distrusted is marked and says why."""
    rows: list[dict[str, Any]] = [
        {
            "model": name, "kind": kind.kind, "batch": timing.batch, "at": length, "repeats": len(timing.seconds),
            **{f"p{p}": timing.milliseconds(p) for p in (50, 90, 99)},
            "throughput": timing.median_throughput, "peak_bytes": timing.peak_bytes, "state_bytes": timing.state_bytes,
            "joules": timing.joules_per_token, "drift": timing.drift, "doubts": "; ".join(timing.doubts),
        }
        for kind in KINDS
        for batch in batches(run, kind)
        for name in run.models
        for length, timing in timings(run, kind, name, batch).items()
    ]  # fmt: skip
    columns = [
        Column("model", "model", text=True),
        Column("kind", "kind", text=True),
        Column("batch", "batch"),
        Column("at", "length or context"),
        Column("repeats", "repeats"),
        *(Column(f"p{p}", f"p{p} (ms)", formats.significant) for p in (50, 90, 99)),
        Column("throughput", "tokens/s", formats.rate),
        Column("peak_bytes", "peak memory", formats.size),
        Column("state_bytes", "state", formats.size),
        Column("joules", "J/token", formats.significant),
        Column("drift", "drift", formats.percent),
        Column("doubts", "to distrust", text=True),
    ]
    shown = [column for column in columns if any(row[column.key] not in (None, "") for row in rows)]
    marked = frozenset(i for i, row in enumerate(rows) if row["doubts"])
    caption = (
        "Wall time of a training step, a prefill, the first token of an answer or a decoded step; raw values lie in"
        f" records.jsonl. Drift: the last third of turns over the first; marked if beyond {formats.percent(BOUND)} and"
        f" of so clear a trend that chance gives it in at most {round(100 * CERTAINTY)} % of cases."
    )
    return Table("timings", "Every timing", caption, shown, rows, marked, folded=True) if rows else None
