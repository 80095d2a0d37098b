"""Made tasks of recall hold their answers, their generators repeat themselves, and the experiment becomes rows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from baselines.config import SizeConfig
from baselines.registry import find
from harness.recall import __main__ as main
from harness.recall.config import RecallConfig
from harness.recall.experiment import measure
from harness.recall.figure import draw, recalled
from harness.recall.tasks import IGNORED, KEYS, TASKS, VOCAB_SIZE, batch
from harness.records import Recall, Record, RecordStore


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_is_its_seeds_alone_and_of_the_shape_that_is_said(task: str) -> None:
    first, again, other = (batch(task, 5, 8, 0, step) for step in (1, 1, 2))
    np.testing.assert_array_equal(first.ids, again.ids)
    assert (first.ids != other.ids).any()
    assert first.ids.shape == first.targets.shape == (5, 8 * TASKS[task].length)
    assert 0 <= first.ids.min() <= first.ids.max() < VOCAB_SIZE


def rows(task: str) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    made = batch(task, 20, 9, 3)
    return list(zip(made.ids, made.targets, strict=True))


def test_mqar_asks_each_key_once_for_the_value_that_stood_behind_it() -> None:
    orders = set()
    for ids, targets in rows("mqar"):
        pairs = dict(zip(ids[:18:2].tolist(), ids[1:18:2].tolist(), strict=True))
        assert len(pairs) == 9
        assert max(pairs) < KEYS <= min(pairs.values())
        assert sorted(ids[18:].tolist()) == sorted(pairs)
        assert targets[18:].tolist() == [pairs[key] for key in ids[18:].tolist()]
        assert (targets[:18] == IGNORED).all()
        orders.add(tuple(np.argsort(ids[18:])) == tuple(np.argsort(ids[:18:2])))
    assert False in orders


def test_induction_repeats_the_text_and_asks_for_what_followed() -> None:
    for ids, targets in rows("induction"):
        assert len(set(ids[:9].tolist())) == 9
        assert ids[9:].tolist() == ids[:9].tolist()
        assert targets[9:17].tolist() == ids[10:].tolist()
        assert (targets[[*range(9), 17]] == IGNORED).all()


def test_selective_copying_asks_for_the_symbols_among_the_noise_in_order() -> None:
    for ids, targets in rows("selective_copying"):
        symbols = ids[:27][ids[:27] > 1]
        assert targets[27:].tolist() == symbols.tolist()
        assert (ids[27:] == 1).all()
        assert (targets[:27] == IGNORED).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "copy"}, r"task is 'copy': choose one of mqar, induction, selective_copying"),
        ({"sizes": [4, 200]}, r"sizes is \[4, 200\]: numbers from 2 to 128 with task=mqar"),
        ({"tokens": 100}, r"tokens is 100: the longest sequence has 192"),
        ({"steps": 0}, r"steps is 0: must be at least 1"),
    ],
)
def test_impossible_options_are_one_line(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}$"):
        RecallConfig(**options)  # type: ignore[arg-type]


def test_a_model_learns_the_task() -> None:
    family = find("transformer").Config(hidden_size=64, num_layers=2, head_dim=16, intermediate_size=64)
    config = RecallConfig(task="induction", sizes=[4, 8], steps=150, tokens=256)
    found = measure(config, family)
    assert found.chance == 1 / 256
    assert min(found.accuracy) > 5 / 256
    assert found.state_bytes == 2 * 4 * 2 * 64 * 16


def test_what_was_measured_is_a_row_and_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    for steps, rows_after in ((1, 2), (1, 2), (2, 4)):
        family = {name: find(name).Config(hidden_size=16, head_dim=8) for name in ("transformer", "linear_attention")}
        size = SizeConfig(10_000, 0.5, hidden_size=32, num_layers=1, head_dim=16)
        assert main.run(RecallConfig(family, size, steps=steps, sizes=[4, 8], output=str(tmp_path))) == 0
        found = list(RecordStore(tmp_path / "mqar"))
        assert len(found) == rows_after
    assert {row.family for row in found} == {"transformer", "linear_attention"}
    assert (tmp_path / "mqar/recall.svg").exists()


def test_the_same_rows_give_the_same_figure(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        for seed, accuracy in ((0, [1.0, 0.5]), (1, [0.5, 0.25])):
            values = Recall("mqar", [4, 8], accuracy, 1 / 128, 64, 10, 100, 2048, 1.0)
            RecordStore(folder).append(Record("recall", "mamba", "mamba", seed, values=values))
        draw(folder)
    assert (tmp_path / "a/recall.svg").read_bytes() == (tmp_path / "b/recall.svg").read_bytes()
    values = Recall("induction", [4, 8], [1.0, 1.0], 1 / 256, 64, 10, 100, 2048, 1.0)
    RecordStore(tmp_path / "a").append(Record("recall", "lstm", "recurrent", 0, values=values))
    with pytest.raises(ValueError, match="rows of several tasks or sizes"):
        recalled(tmp_path / "a")
    with pytest.raises(ValueError, match="no recall in"):
        recalled(tmp_path / "c")


POOL = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from harness.processes import die_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), die_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60).result()
"""


def test_a_worker_ends_with_its_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    environment = os.environ | {"PYTHONPATH": str(Path(main.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "pool.py")], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)
