"""Engines: two processes, accumulated parts and sharded weights train as one process does, whatever was resumed."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from baselines.config import Unsupported
from baselines.interface import SequenceModel
from harness.config import RunConfig
from harness.data.tokens import TokenStore
from harness.records import RecordStore
from harness.run import run
from harness.runtime import RuntimeConfig
from harness.train.engine import recompute_blocks, shares
from harness.worker import server_context
from tests.harness.peers import CASES, LEFT, Stopped, Trained, train, train_along
from tests.harness.test_config import composed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("rows", "world", "micro"), [(4, 1, None), (4, 2, 1), (5, 2, 2), (3, 2, 1), (7, 3, 2)])
def test_shares_are_the_whole_batch_once(rows: int, world: int, micro: int | None) -> None:
    windows = torch.arange(rows)[:, None].double()
    each = [shares(windows, rank, world, micro) for rank in range(world)]
    assert len({len(parts) for parts in each}) == 1
    assert max(len(part) for parts in each for part, _ in parts) <= (micro or rows)
    read = [row for parts in each for part, weight in parts if weight for row in part[:, 0].tolist()]
    assert sorted(read) == list(range(rows))
    means = [sum(weight * part.mean() for part, weight in parts) for parts in each]
    assert sum(means) / world == pytest.approx(windows.mean())


def test_what_has_no_blocks_cannot_recompute_them(gru: SequenceModel) -> None:
    with pytest.raises(Unsupported, match="activation_checkpointing: GRUForCausalLM has no list of blocks"):
        recompute_blocks(gru.model)


@pytest.fixture
def recipe(config: RunConfig) -> tuple[RunConfig, Path]:
    """Eight steps of three sequences, which two processes cannot halve, and the folder of the tokens."""
    config.train = dataclasses.replace(config.train, tokens=8 * 96, batch_size=3)
    return config, TokenStore.build(config.data, Path(config.output)).folder


def difference(a: Trained, b: Trained) -> tuple[float, float]:
    """The largest difference of two losses, and of two weights relative to the largest."""
    weights = [np.abs(a.weights[name] - w).max() / np.abs(w).max() for name, w in b.weights.items()]
    return max(abs(x - y) for x, y in zip(a.loss, b.loss, strict=True)), float(max(weights))


def test_two_processes_train_as_one(recipe: tuple[RunConfig, Path], tmp_path: Path) -> None:
    """In float32 by rounding alone: 1e-5 in the loss; in bfloat16 by the rounding of each part's gradients."""
    with pytest.raises(Stopped):
        train(*recipe, RuntimeConfig(), tmp_path / LEFT, stop=5)
    recipe[0].train.checkpoint_seconds = 1e9
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = server_context()
    answers = []
    for rank in range(2):
        answer, theirs = context.Pipe(duplex=False)
        process = context.Process(target=train_along, args=(rank, port, *recipe, tmp_path, theirs), daemon=True)
        process.start()
        theirs.close()
        answers.append(answer)
    one = train(*recipe, RuntimeConfig(), tmp_path / "one")
    low = train(*recipe, RuntimeConfig(dtype="bfloat16"), tmp_path / "low")
    for case in CASES:
        first, second = (answer.recv() for answer in answers)
        assert first.loss == second.loss
        loss, weights = difference(first, one)
        if "bf16" in case:
            assert loss > 1e-5
            assert difference(first, low)[0] < 1e-3
        else:
            assert loss < 1e-5, case
            assert weights < 2e-4, case


def test_a_process_killed_ends_in_a_line_and_one_process_goes_on(
    corpus: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of torchrun train a model to its end and lose one of them in the next; one resumes from shards.

    What they trained together is, 1e-5 in the loss and in the perplexity, what one process trains alone.
    """
    overrides = [
        "model=[gru]", "+model.mortal={family:tests.harness.broken,checkpoint:null,fault:mortal}", "debug=smoke",
        "data=folder", f"data.path={corpus}", "data.test_fraction=0.3", "measure=quality", "measure.ngrams=[]",
        "measure.conventions=[position]", "train.tokens=3840", "train.batch_size=3", "train.log_every=2",
        "train.checkpoint_seconds=1e-9",
    ]  # fmt: skip
    shared = [*overrides, f"output={tmp_path / 'two'}", "runtime.engine=fsdp", "runtime.micro_batch=1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "200")
    done = subprocess.run(
        [*torchrun, "-m", "harness", *shared], cwd=workplace, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith("mortal train: ")]
    assert "a process that trained along has ended; the same command goes on from the last resume state" in line
    (kept,) = (tmp_path / "two").glob("runs/*/seed0/mortal/resume/step-*")
    assert kept.name == "step-000000012"
    monkeypatch.setattr("harness.run.report", lambda folder, console, allow_unlike: folder)
    losses, curves = [], []
    for place in ("two", "one"):
        assert run(composed([*overrides, f"output={tmp_path / place}"])) == 0
        (folder,) = (tmp_path / place).glob("runs/*")
        last = {(row.kind, row.model): row.values for row in RecordStore(folder)}
        losses.append(np.array([last["training", name].loss for name in ("gru", "mortal")]))  # type: ignore[union-attr]
        curves.append([np.stack(pd.read_parquet(path).nll) for path in sorted(folder.glob("seed0/*/nll.parquet"))])
    assert losses[0].shape == (2, 10)
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5, rtol=0)
    np.testing.assert_allclose(np.concatenate(curves[0]), np.concatenate(curves[1]), atol=1e-3)
