"""The tables that let a reader distrust: the gate, what differed between models, the job's cost, its provenance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from harness.records import Check, Gate, PositionCurve, Training, TrainStep, Tuning
from harness.report import formats
from harness.report.collect import Run
from harness.report.tables import Column, Table

MEASURED = {"load_average": ("load_average", "load_average_after"), "others' cores": ("others_load",)}
"""What stands among the conditions but is found, not set: never marked as a difference; with its fields."""


def gate(run: Run) -> Table | None:
    """What each check found, the worst over seeds, with the bound that it must not exceed."""
    found: dict[str, dict[str, Check]] = {}
    for name in run.models:
        for row in run.rows:
            if row.record.model == name and isinstance(row.record.values, Gate):
                for check in row.record.values.checks:
                    worst = found.setdefault(check.name, {}).get(name)
                    if worst is None or _badness(check) > _badness(worst):
                        found[check.name][name] = check
    if not found:
        return None
    names = [name for name in run.models if any(name in by_model for by_model in found.values())]
    rows = [{"check": check, **by_model} for check, by_model in found.items()]
    failed = frozenset(i for i, by_model in enumerate(found.values()) if not all(c.passed for c in by_model.values()))
    columns = [Column("check", "check", text=True), *(Column(name, name, _check) for name in names)]
    caption = "Value found ≤ its bound, the worst over seeds; ✗: failed. A model that fails is not measured further."
    return Table("gate", "Gate", caption, columns, rows, failed)


def conditions(run: Run) -> Table:
    """What a comparison should hold equal, by model; rows that differ are marked."""
    names = run.models
    by_key: dict[str, dict[str, str]] = {}
    for name in names:
        for key, values in _conditions(run, name).items():
            by_key.setdefault(key, {})[name] = values
    rows = []
    for key, by_model in by_key.items():
        differs = len({by_model.get(name) for name in names}) > 1 and key not in MEASURED
        rows.append({"condition": key, **by_model, "differs": "differs" if differs else ""})
    columns = [
        Column("condition", "condition", text=True),
        *(Column(name, name, text=True) for name in names),
        Column("differs", "", text=True),
    ]
    marked = frozenset(i for i, row in enumerate(rows) if row["differs"])
    caption = (
        "As recorded in each model's rows. What differs between models is marked: read the figures with it in mind."
    )
    return Table("conditions", "Conditions", caption, columns, rows, marked)


def _conditions(run: Run, name: str) -> dict[str, str]:
    records = [row.record for row in run.rows if row.record.model == name]
    found: dict[str, list[Any]] = {}
    for record in records:
        values = record.values
        for key, value in dataclasses.asdict(record.conditions).items():
            found.setdefault(key, []).append(value)
        for key in ("data_hash", "config_hash"):
            found.setdefault(key, []).append(str(record.provenance.get(key, ""))[:12])
        if isinstance(values, Training):
            found.setdefault("training tokens", []).append(values.tokens)
            found.setdefault("training length", []).append(values.train_length)
            if values.learning_rate is not None:
                how = "tuned" if "@" in name else "same for all"
                found.setdefault("learning rate", []).append(f"{values.learning_rate:g} ({how})")
            found.setdefault("training processes", []).append(
                f"{values.processes} ({values.engine})" if values.processes > 1 else ""
            )
        if isinstance(values, Training | TrainStep):
            found.setdefault("micro_batch", []).append(values.micro_batch)
            found.setdefault("activation_checkpointing", []).append(values.activation_checkpointing or "")
        if isinstance(values, PositionCurve):
            found.setdefault("scored tokens", []).append(values.tokens)
            found.setdefault("convention", []).append(values.convention)
        found.setdefault("seeds", []).append(record.seed)
    for key, fields in MEASURED.items():
        if loads := [value for field in fields for value in found.pop(field, []) if value is not None]:
            found[key] = [f"{min(loads):.2f}–{max(loads):.2f}"]
    return {key: _listed(values) for key, values in found.items() if _listed(values)}


def tuning(run: Run) -> Table | None:
    """The loss of each model at each learning rate that was tried, over the last tenth of training."""
    rows = []
    for name in run.models:
        for row, values in run.select(Tuning, name):
            losses = {f"{rate:g}": loss for rate, loss in zip(values.rates, values.losses, strict=True)}
            rows.append({"model": name, "seed": row.record.seed, **losses, "chosen": values.chosen})
    if not rows:
        return None
    rates = sorted({key for row in rows for key in row} - {"model", "seed", "chosen"}, key=float)
    columns = [
        Column("model", "model", text=True),
        Column("seed", "seed"),
        *(Column(rate, f"rate {rate}", formats.significant) for rate in rates),
        Column("chosen", "tuned", text=True),
    ]
    caption = (
        "Training loss in nats a token over the last tenth of training at each learning rate; the lowest is tuned."
        " model@rate has its tuned rate in every table, model alone the rate that all share."
    )
    return Table("tuning", "Learning rates", caption, columns, rows)


def job(run: Run) -> Table | None:
    """Wall and CPU seconds of the whole job, with its parts."""
    if not run.finishes:
        return None
    parts: dict[str, dict[str, float]] = {}
    for finish in run.finishes:
        for key, seconds in (("wall", finish.parts), ("cpu", finish.cpu_parts)):
            for part, value in seconds.items():
                cells = parts.setdefault(part, {})
                cells[key] = cells.get(key, 0.0) + value
    total = sum(finish.wall_seconds for finish in run.finishes)
    rows: list[dict[str, Any]] = [{"part": part, **cells} for part, cells in parts.items()]
    rows.append({"part": "whole job", "wall": total, "cpu": sum(finish.cpu_seconds for finish in run.finishes)})
    columns = [
        Column("part", "part", text=True),
        Column("wall", "wall time", formats.seconds),
        Column("cpu", "CPU time", formats.seconds),
    ]
    sessions = len(run.finishes)
    caption = f"Summed over {sessions} sessions that ran to their end." if sessions > 1 else "Of one session."
    return Table("job", "Cost of the job", caption, columns, rows, rule=len(parts) or None)


def provenance(run: Run) -> Table:
    """Where the rows come from; several values mean that rows differ."""
    found: dict[str, list[Any]] = {}
    for row in run.rows:
        for key, value in _flat(row.record.provenance):
            found.setdefault(key, []).append(value)
    times = sorted(row.record.time for row in run.rows if row.record.time)
    if times:
        found["measured"] = [times[0]] if times[0] == times[-1] else [f"{times[0]} to {times[-1]}"]
    rows = [{"key": key, "value": _listed(values) or None} for key, values in found.items()]
    several = frozenset(
        i for i, (key, values) in enumerate(found.items()) if len(set(map(str, values))) > 1 and key != "seed"
    )
    columns = [Column("key", "what", text=True), Column("value", "value", text=True)]
    caption = "As recorded with every row; marked where rows differ."
    return Table("provenance", "Provenance", caption, columns, rows, several)


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}: ")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        elif key.endswith("_bytes"):
            yield f"{prefix}{key.removesuffix('_bytes')}", formats.size(value)
        else:
            yield f"{prefix}{key}", value


def _listed(values: Iterable[Any]) -> str:
    """The distinct values in rising order (of their text, unless all are numbers), empty ones left out."""
    distinct = {value for value in values if value not in (None, "")}
    numbers = all(isinstance(value, int | float) for value in distinct)
    return ", ".join(str(value) for value in sorted(distinct, key=None if numbers else str))


def _badness(check: Check) -> tuple[bool, float]:
    return (not check.passed, math.inf if math.isnan(check.value) else check.value)


def _check(check: Check | None) -> str:
    if check is None:
        return formats.MISSING
    value, bound = formats.scientific(check.value, 2), formats.scientific(check.bound, 1)
    return f"{value} ≤ {bound}" if check.passed else f"✗ {value} > {bound}"
