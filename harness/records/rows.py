"""A row: a measurement's values, its model, seed, end, conditions and provenance, and one line of JSON that says it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.records import costs, models, scores
from harness.records.models import Check, Gate
from harness.records.values import Values

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "nan", "oom", "crashed", "unsupported", "skipped"]

KINDS: dict[str, type[Values]] = {
    cls.kind: cls
    for module in (models, scores, costs)
    for cls in vars(module).values()
    if isinstance(cls, type) and issubclass(cls, Values) and hasattr(cls, "kind")
}
"""The values of every kind of measurement, by the name that rows have for it."""


@dataclass
class Conditions:
    """What rows of one comparison must share; where a row differs the report marks it.

    Timed rows also say how busy the machine was: its load average before and after, and how many cores others kept
    busy while the row was timed (`harness.neighbours`).
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    compile: bool = False
    kernel_path: str = ""
    load_average: float | None = None
    load_average_after: float | None = None
    others_load: float | None = None


@dataclass
class Record:
    """One row of `records.jsonl`. `values` is None where the measurement did not come about: see `message`.

    `length` and `batch` are those of the timed shape, in tokens and rows, present also where there are no values; 0 for
    kinds without them.
    """

    kind: str
    model: str
    family: str
    seed: int
    status: Status = "ok"
    message: str = ""
    values: Values | None = None
    conditions: Conditions = field(default_factory=Conditions)
    provenance: dict[str, Any] = field(default_factory=dict)
    time: str = ""
    length: int = 0
    batch: int = 0
    schema_version: int = SCHEMA_VERSION


def to_json(record: Record) -> str:
    """One line of JSON; NaN and infinities are kept as Python's json writes them."""
    return json.dumps(dataclasses.asdict(record), separators=(",", ":"))


def from_json(line: str) -> Record:
    """The record that `to_json` wrote; ValueError for a schema version this code does not know."""
    raw = json.loads(line)
    if raw["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"record of schema version {raw['schema_version']}; this version reads {SCHEMA_VERSION}")
    raw["conditions"] = Conditions(**raw["conditions"])
    if raw["values"] is not None:
        if raw["kind"] == Gate.kind:
            raw["values"]["checks"] = [Check(**check) for check in raw["values"]["checks"]]
        raw["values"] = KINDS[raw["kind"]](**raw["values"])
    return Record(**raw)
