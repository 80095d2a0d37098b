"""The whole benchmark: every case in order, a record each as soon as it is there, then the table of all of them."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils import logging

from baselines.rivals.missing import NotInstalled
from harness.bench.cases import Case
from harness.bench.measure import blank, measure, unequal
from harness.bench.table import page, speed_up, work_name
from harness.provenance import provenance
from harness.records import Benchmark, Conditions, Record, RecordStore
from harness.worker import one_line, status_of

THREADS = 1


def run(cases: Sequence[Case], official: Path | None, rounds: int, folder: Path) -> int:
    """Exit code 0, or 1 if a row failed; `folder` then holds this run's records and table and no other's."""
    if official is not None and not official.is_file():
        raise ValueError(f"--official {official}: no such file")
    logging.set_verbosity_error()  # transformers says at length that its kernels are missing: so does the table
    torch.set_num_threads(THREADS)
    folder.mkdir(parents=True, exist_ok=True)
    store, console = RecordStore(folder), Console()
    store.path.unlink(missing_ok=True)
    started, records = time.perf_counter(), []
    for case in cases:
        record = _record(case, official, rounds)
        store.append(record)
        records.append(record)
        _say(console, record)
    (folder / "table.md").write_text(page(records))
    console.print(
        f"{time.perf_counter() - started:.0f} s; table: {folder / 'table.md'}", highlight=False, soft_wrap=True
    )
    return 1 if any(record.status not in ("ok", "unsupported") for record in records) else 0


def _record(case: Case, official: Path | None, rounds: int) -> Record:
    """The row of a case, however it ends."""
    row = Record(Benchmark.kind, case.ours, case.family, seed=0, values=blank(case), length=case.length)
    row.conditions = Conditions(threads=THREADS, load_average=os.getloadavg()[0])
    row.provenance = provenance("", "", 0)
    try:
        row.values, row.conditions.kernel_path = measure(case, official, rounds)
        row.message = unequal(row.values)
        row.status = "failed" if row.message else "ok"
    except NotInstalled as missing:
        row.status, row.message = "unsupported", str(missing)
    except Exception as error:
        row.status, row.message = status_of(error), one_line(error)
    row.time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return row


def _say(console: Console, record: Record) -> None:
    values = record.values
    assert isinstance(values, Benchmark)
    what = f"{record.model}, {work_name(values)} against {values.rival}"
    result = f"{speed_up(values)} times as fast" if record.status == "ok" else f"{record.status}: {record.message}"
    console.print(f"{what}: {result}", highlight=False, soft_wrap=True)
