"""Records: what is written comes back, a torn line costs only itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.records import Check, Conditions, Decode, Gate, Record, RecordStore, from_json, to_json


def record(seed: int = 0) -> Record:
    values = Decode(batch=1, context=64, seconds=[0.25, 0.5], state_bytes=10, flops=20)
    return Record("decode", "m", "f", seed, values=values, conditions=Conditions(threads=2), length=64)


def test_a_record_comes_back_as_it_was() -> None:
    gate = Record("gate", "m", "f", 0, values=Gate([Check("finite", True, 0.0, 0.0)]), provenance={"git": {"a": 1}})
    failed = Record("prefill", "m", "f", 0, status="oom", message="no memory", length=8192)
    for row in (record(), gate, failed):
        assert from_json(to_json(row)) == row


def test_the_store_appends_and_reads_in_order(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    assert list(store) == []
    for seed in range(3):
        store.append(record(seed))
    assert [row.seed for row in RecordStore(tmp_path)] == [0, 1, 2]


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.append(record(0))
    with store.path.open("a") as file:
        file.write(to_json(record(1))[:40])
    store.append(record(2))
    assert [row.seed for row in store] == [0, 2]


def test_an_unknown_schema_version_is_refused() -> None:
    raw = json.loads(to_json(record())) | {"schema_version": 99}
    with pytest.raises(ValueError, match="schema version 99"):
        from_json(json.dumps(raw))
