"""What two runs were made of: keys of their configs, where their rows come from, under what each model was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.report import conditions as report
from harness.report.collect import Run
from harness.report.tables import Column, Table

ALWAYS_DIFFERS = ("measured", "seed")


def config(a: Mapping[str, Any], b: Mapping[str, Any]) -> Table:
    """The keys of `config.yaml` that differ; a folder without one has no keys."""
    return _changes("config", dict(_flat(a)), dict(_flat(b)), "key", "Keys of config.yaml that differ.")


def provenance(a: Run, b: Run) -> Table:
    """Commit, packages, machine and data of the rows."""
    one, other = (
        {row["key"]: row["value"] for row in report.provenance(run).rows if row["key"] not in ALWAYS_DIFFERS}
        for run in (a, b)
    )
    return _changes("provenance", one, other, "what", "Where the rows come from.")


def conditions(a: Run, b: Run) -> Table:
    """Device, number format, kernel path and the like of each model, but for what is merely found (the load)."""
    one, other = (
        {
            f"{name}: {row['condition']}": row.get(name)
            for row in report.conditions(run).rows
            for name in run.models
            if row["condition"] not in (*report.MEASURED, "config_hash", "data_hash")
        }
        for run in (a, b)
    )
    both = [key for key in one if key in other]
    return _changes(
        "conditions", {key: one[key] for key in both}, {key: other[key] for key in both}, "model: condition",
        "Of the models that both runs have.",
    )  # fmt: skip


def _changes(name: str, a: Mapping[str, Any], b: Mapping[str, Any], what: str, caption: str) -> Table:
    rows = [
        {"key": key, "a": a.get(key), "b": b.get(key)} for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)
    ]
    columns = [Column("key", what, text=True), Column("a", "A", text=True), Column("b", "B", text=True)]
    return Table(name, name.capitalize(), caption, columns, rows)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
