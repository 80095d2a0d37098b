"""The rows of a run folder on disk: one JSON object a line, only ever appended to."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.records.rows import Record, from_json, to_json


class RecordStore:
    """The `records.jsonl` of one run folder: appended to and read by any process."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "records.jsonl"

    def append(self, record: Record) -> None:
        """Add one row and flush it to disk; a row torn by an earlier kill is closed first."""
        line = to_json(record) + "\n"
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_END)
            if file.tell() and not self._ends_whole(file):
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def __iter__(self) -> Iterator[Record]:
        """All whole rows in the order they were written; a torn line is passed over."""
        if not self.path.exists():
            return
        with self.path.open() as file:
            for line in file:
                try:
                    json.loads(line)
                except json.JSONDecodeError:
                    continue
                yield from_json(line)

    @staticmethod
    def _ends_whole(file: Any) -> bool:
        file.seek(-1, os.SEEK_END)
        return bool(file.read(1) == b"\n")
