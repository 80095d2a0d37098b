"""Rows that one run has and the other lacks: a measurement that was not asked for, or did not come about."""

from __future__ import annotations

from typing import Any

from harness.records import Record
from harness.report.collect import Run
from harness.report.tables import Column, Table

Key = tuple[str, str, int, int]


def missing(a: Run, b: Run) -> Table:
    """What was measured in one run alone, seeds together, with what the other says of it."""
    rows = [*_only(a, b, "A", "B"), *_only(b, a, "B", "A")]
    columns = [
        Column("model", "model", text=True),
        Column("kind", "kind", text=True),
        Column("at", "length × batch", text=True),
        Column("seeds", "seeds", text=True),
        Column("only", "only in", text=True),
        Column("why", "in the other", text=True),
    ]
    return Table("rows", "Rows only in one", "Rows that ended well in one run alone.", columns, rows)


def _only(here: Run, there: Run, name: str, other: str) -> list[dict[str, Any]]:
    states = {(*_key(row.record), row.record.seed): row.record for row in there.rows}
    found: dict[tuple[Key, str], list[int]] = {}
    for record in (row.record for row in here.rows if row.record.status == "ok"):
        twin = states.get((*_key(record), record.seed))
        if twin is None or twin.status != "ok":
            found.setdefault((_key(record), twin.status if twin else "no row"), []).append(record.seed)
    return [
        {
            "model": model, "kind": kind, "at": f"{length} × {batch}" if length else None,
            "seeds": ", ".join(map(str, sorted(seeds))), "only": name, "why": f"{other}: {why}",
        }
        for ((model, kind, length, batch), why), seeds in found.items()
    ]  # fmt: skip


def _key(record: Record) -> Key:
    batch: int = record.batch or getattr(record.values, "batch", 0) or 0
    return record.model, record.kind, record.length, batch
