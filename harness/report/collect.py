"""From run folders to the rows that a report shows: the last word on each measurement, and what did not come about.

`records.jsonl` is only appended to, so a run that was killed and started again may hold a measurement twice: the last
row of the same (kind, model, seed, shape) counts; only the closing rows are all kept, since each is the cost of one
session, and the job cost their sum. Several folders are drawn as one comparison: a model that they trained alike, with
other seeds, is one model, and one of the same name that is another is told apart by the name of its run (`pooling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness.records import Finish, Record, RecordStore, Values
from harness.report.pooling import FLOOR_FAMILY, base, told_apart
from harness.report.style import rank

V = TypeVar("V", bound=Values)

STAGES = ("training", "loaded", "gate")  # what comes before any measurement


@dataclass(frozen=True)
class Row:
    """A record and the run folder that its `nll_file` is relative to."""

    record: Record
    folder: Path


@dataclass(frozen=True)
class Failure:
    """A measurement that did not come about; `at` and `batch` are the shape it was tried at, where the row says so."""

    kind: str
    model: str
    status: str
    at: int | None
    message: str
    batch: int = 0

    def __str__(self) -> str:
        """Such as 'mamba: oom at 8192', or 'mamba: oom at 8192 × 8' of eight rows."""
        where = f" at {self.at}" if self.at is not None else ""
        where += f" × {self.batch}" if where and self.batch > 1 else ""
        reason = "" if self.at is not None or not self.message else f" ({self.message})"
        return f"{self.model}: {self.status}{where}{reason}"


@dataclass(frozen=True)
class Run:
    """The rows that count. Models stand in the order in which the last command named them.

    (Rows lie in the file in the order in which parallel workers happened to finish, which is no order to show.) Where
    the rows do not say, the order is that of `style.LOOKS`, unknown names after them by alphabet.
    """

    rows: list[Row]
    finishes: list[Finish]
    models: list[str]
    floors: list[str]
    seeds: list[int]

    def select(self, values: type[V], model: str) -> list[tuple[Row, V]]:
        """The rows of one kind and model that ended well, with their values."""
        chosen = [row for row in self.rows if row.record.model == model and row.record.status == "ok"]
        return [(row, row.record.values) for row in chosen if isinstance(row.record.values, values)]

    def values(self, values: type[V], model: str) -> list[V]:
        """As `select`, the values alone."""
        return [found for _, found in self.select(values, model)]

    def failures(self, *kinds: str) -> list[Failure]:
        """What went wrong in these kinds of measurement (none named: in all), once for all seeds."""
        order = self.models + self.floors
        failed = [row.record for row in self.rows if row.record.status != "ok"]
        found = [_failure(record) for record in sorted(failed, key=lambda record: order.index(record.model))]
        return list(dict.fromkeys(failure for failure in found if not kinds or failure.kind in kinds))

    def absences(self, kind: str) -> list[Failure]:
        """Why models lack rows of this kind: its own failures, and what stopped a model before it came to them."""
        present = {row.record.model for row in self.rows if row.record.kind == kind}
        found = self.failures(kind, *STAGES)
        return [failure for failure in found if failure.kind == kind or failure.model not in present]


def collect(folders: Sequence[Path]) -> Run:
    """Read the run folders; ValueError in one line where one holds no records or is given twice."""
    kept: dict[tuple[str, str, int, int], dict[int | None, Row]] = {}
    finishes: list[Row] = []
    for folder, records in told_apart({folder: read(folder) for folder in _once(folders)}):
        for record in records:
            row = Row(record, folder)
            if record.kind == Finish.kind:
                finishes.append(row)
            else:
                _replace(kept.setdefault((record.kind, record.model, record.seed, record.length), {}), row)
    return _run([row for rows in kept.values() for row in rows.values()], finishes)


def read(folder: Path) -> list[Record]:
    """All rows of a run folder; ValueError in one line if there are none."""
    found = list(RecordStore(folder))
    if not found:
        raise ValueError(f"no records in {folder}: a run folder holds a records.jsonl with at least one row")
    return found


def _once(folders: Sequence[Path]) -> Sequence[Path]:
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"folder {folder} is given twice")
    return folders


def _replace(rows: dict[int | None, Row], row: Row) -> None:
    """Let `row` take the place of what it measures anew: by batch, or the whole length where it failed without one."""
    batch: int | None = row.record.batch or getattr(row.record.values, "batch", None)
    if batch is None:
        rows.clear()
    rows.pop(None, None)
    rows[batch] = row


def _run(rows: list[Row], finishes: list[Row]) -> Run:
    named = [row.record for row in rows]
    floors = {record.model for record in named if record.family == FLOOR_FAMILY}
    return Run(
        rows=rows,
        finishes=[row.record.values for row in finishes if isinstance(row.record.values, Finish)],
        models=_ordered({record.model for record in named} - floors, named),
        floors=sorted(floors),
        seeds=sorted({record.seed for record in named if record.model not in floors}),
    )


def _ordered(models: set[str], records: list[Record]) -> list[str]:
    latest = max(records, key=lambda record: record.time, default=None)
    named: list[str] = latest.provenance.get("models", []) if latest else []
    place = {name: index for index, name in enumerate(named)}
    return sorted(models, key=lambda name: (place.get(base(name), len(named)), rank(name)))


def _failure(record: Record) -> Failure:
    lines = record.message.strip().splitlines()
    line = lines[0][:160] if lines else ""
    return Failure(record.kind, record.model, record.status, record.length or None, line, record.batch)
