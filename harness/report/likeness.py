"""Like for like: models whose rows differ in what a comparison must hold equal are not drawn side by side.

Unless that is allowed by name; then the models that stand apart carry a dagger in every table and figure, and every
caption says in what they differ. What differs by nature (the kernel path, the load average) is shown among the
conditions and never refused. A failed attempt with a seed counts as one with that seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.records import PositionCurve, Record, Timed, Training, TrainStep
from harness.report.collect import Row, Run
from harness.report.style import DAGGER

KEYS = (
    "device", "dtype", "threads", "compile", "micro_batch", "activation_checkpointing", "processor", "data_hash",
    "training_tokens", "training_length", "scored_bytes", "seeds",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """A key in which models differ, the models by its value, and those that stand apart from the most."""

    key: str
    models: dict[str, list[str]]
    apart: frozenset[str]

    def __str__(self) -> str:
        """Such as 'dtype (float32: transformer, mamba; bfloat16: ttt_linear)'."""
        groups = [f"{value}: {', '.join(names)}" for value, names in self.models.items()]
        return f"{self.key} ({'; '.join(groups)})"


def require_alike(run: Run, allowed: Sequence[str]) -> tuple[Run, str]:
    """The run with a dagger at the models that stand apart, and the sentence that says why ('' if none does).

    ValueError in one line if models differ in a key that is not `allowed`, or if an allowed key does not exist.
    """
    unknown = sorted(set(allowed) - set(KEYS))
    if unknown:
        raise ValueError(f"allow_unlike: no such key {', '.join(unknown)}; choose from {', '.join(KEYS)}")
    found = [difference for key in KEYS if (difference := _difference(run, key))]
    refused = [difference for difference in found if difference.key not in allowed]
    if refused:
        keys = ",".join(difference.key for difference in found)
        raise ValueError(
            f"models differ in {' and in '.join(map(str, refused))}: not a like-for-like comparison; "
            f"allow_unlike=[{keys}] draws it all the same, marked"
        )
    apart = frozenset().union(*(difference.apart for difference in found))
    note = f"{DAGGER} Not like for like: {'; '.join(map(str, found))}." if found else ""
    return _marked(run, apart), note


def _difference(run: Run, key: str) -> Difference | None:
    models: dict[str, list[str]] = {}
    for name in run.models:
        values = sorted({str(v) for row in run.rows if row.record.model == name for v in _values(row.record, key)})
        if values:
            models.setdefault(", ".join(values), []).append(name)
    if len(models) < 2:
        return None
    usual = max(models.values(), key=lambda names: (len(names), -run.models.index(names[0])))
    return Difference(key, models, frozenset(name for names in models.values() if names is not usual for name in names))


def _values(record: Record, key: str) -> list[Any]:
    """What one row says of `key`; nothing where it says nothing."""
    values = record.values
    if key == "seeds":
        return [record.seed]
    if key == "data_hash":
        return [str(record.provenance["data_hash"])[:12]] if "data_hash" in record.provenance else []
    if key == "training_tokens":
        return [values.tokens] if isinstance(values, Training) else []
    if key == "training_length":
        return [values.train_length] if isinstance(values, Training) else []
    if key == "scored_bytes":
        return [values.bytes or values.tokens + values.documents] if isinstance(values, PositionCurve) else []
    if key == "compile":  # nothing but training is ever compiled
        return [record.conditions.compile] if isinstance(values, TrainStep) else []
    if key in ("micro_batch", "activation_checkpointing"):  # what they change in a training is rounding
        return [getattr(values, key)] if isinstance(values, TrainStep) else []
    if key == "processor":
        hardware = record.provenance.get("hardware", {})
        timed = isinstance(values, Timed)
        return [hardware.get("gpu") or hardware.get("processor")] if timed and hardware else []
    return [getattr(record.conditions, key)] if values is not None else []


def _marked(run: Run, apart: frozenset[str]) -> Run:
    def name(model: str) -> str:
        return model + DAGGER if model in apart else model

    rows = [Row(dataclasses.replace(row.record, model=name(row.record.model)), row.folder) for row in run.rows]
    return dataclasses.replace(run, rows=rows, models=[name(model) for model in run.models])
