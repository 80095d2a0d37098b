"""The rows of a benchmark as one Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.bench.contest import ratio
from harness.records import Benchmark, Record
from harness.report.formats import Interval, fixed, interval, scientific, significant
from harness.report.tables import Column, Table, to_markdown

CAPTION = (
    "Speed-up: the rival's CPU seconds over ours, the median over rounds of the ratio within a round, with the sign"
    " test's 95 % interval (none for fewer than six rounds); by wall beside it. Both sides ran in turn in one process"
    " on one thread, every shape warmed. GEMM share: CPU seconds of our linear layers' matrix products alone over all"
    " of ours. Difference: the largest between both sides' logits or outputs (gradients, relative), where they compute"
    " the same. An operator is timed forward and backward; its rivals scan and autograd are other paths of ours."
)


def page(records: Sequence[Record]) -> str:
    """Title, table, and what the rows have in common."""
    return f"# Benchmark on the CPU\n\n{to_markdown(table(records))}\n{origin(records)}"


def table(records: Sequence[Record]) -> Table:
    """A row a case; one that did not come about says why in place of its ratio."""
    columns = [
        Column("model", "ours", text=True),
        Column("work", "work", text=True),
        Column("rival", "against", text=True),
        Column("ratio", "speed-up"),
        Column("wall", "by wall"),
        Column("ours", "ours, tokens/s"),
        Column("theirs", "rival, tokens/s"),
        Column("gemm", "GEMM share"),
        Column("difference", "difference"),
        Column("rounds", "rounds"),
        Column("path", "our path", text=True),
    ]
    rows = [_row(record) for record in records]
    failed = frozenset(i for i, record in enumerate(records) if record.status != "ok")
    return Table("bench", "Ours against others", CAPTION, columns, rows, failed)


def work_name(values: Benchmark) -> str:
    """Such as 'training step, 2048', of two sequences 'training step, 2 × 2048', or 'decoding after 256'."""
    words = {"train_step": "training step,", "prefill": "prefill,", "decode": "decoding after", "operator": "operator,"}
    rows = f"{values.batch} × " if values.batch > 1 else ""
    return f"{words[values.work]} {rows}{values.length}"


def speed_up(values: Benchmark) -> str:
    """How many times as fast we are by CPU time, such as '8.1 [7.9, 8.4]'."""
    return interval(Interval(*ratio(values.cpu_seconds["rival"], values.cpu_seconds["ours"])))


def origin(records: Sequence[Record]) -> str:
    """Machine, versions, commit and load of the rows, a line each."""
    first = records[0].provenance
    loads = [r.conditions.load_average for r in records if r.conditions.load_average is not None]
    changed = " (changed since)" if first["git"]["dirty"] else ""
    lines = [
        f"{first['hardware']['processor']}, {first['hardware']['cores']} cores, no GPU used",
        ", ".join(f"{name} {version}" for name, version in first["versions"].items()),
        f"commit {first['git']['commit']}{changed}; measured {records[0].time} to {records[-1].time}",
        f"threads: {records[0].conditions.threads}; load average {min(loads):.2f} to {max(loads):.2f}",
    ]
    return "".join(f"- {line}\n" for line in lines)


def _row(record: Record) -> dict[str, Any]:
    values = record.values
    assert isinstance(values, Benchmark)
    cells = {"model": record.model, "work": work_name(values), "rival": values.rival}
    if not values.cpu_seconds:
        return cells | {"ratio": record.message}
    ours, theirs = values.cpu_seconds["ours"], values.cpu_seconds["rival"]
    return cells | {
        "ratio": speed_up(values) if record.status == "ok" else record.message,
        "wall": significant(ratio(values.wall_seconds["rival"], values.wall_seconds["ours"])[0]),
        "ours": significant(values.tokens / float(np.median(ours))),
        "theirs": significant(values.tokens / float(np.median(theirs))),
        "gemm": _share(values.cpu_seconds.get("gemm"), ours),
        "difference": _difference(values),
        "rounds": len(ours),
        "path": record.conditions.kernel_path,
    }


def _share(part: list[float] | None, whole: list[float]) -> str | None:
    return f"{fixed(100 * ratio(part, whole)[0], 0)} %" if part else None


def _difference(values: Benchmark) -> str | None:
    if values.logits_difference is None:
        return None
    gradient = f" ({scientific(values.gradient_difference, 1)})" if values.gradient_difference is not None else ""
    return scientific(values.logits_difference, 1) + gradient
