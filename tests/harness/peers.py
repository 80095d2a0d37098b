"""Trainings of one small model that must all end alike, in one process or shared by two (`test_engines.py`)."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from baselines.config import SizeConfig, fit_to_size
from baselines.registry import find
from harness.config import RunConfig
from harness.data.batches import Batches
from harness.data.tokens import TokenStore
from harness.runtime import RuntimeConfig
from harness.train.engine import whole_weights
from harness.train.loop import Trainer

SIZE = SizeConfig(parameters=24_000, tolerance=0.1, hidden_size=32, num_layers=2, head_dim=16)
LEFT = "left by one process"
"""Folder of a resume state from the middle of the training."""

CASES = {
    "ddp": RuntimeConfig(),
    "ddp by rows": RuntimeConfig(micro_batch=1),
    "fsdp": RuntimeConfig(engine="fsdp"),
    "fsdp by rows, activations again": RuntimeConfig(engine="fsdp", micro_batch=1, activation_checkpointing=True),
    "fsdp resumed": RuntimeConfig(engine="fsdp"),
    "bf16": RuntimeConfig(dtype="bfloat16"),
    "bf16 fsdp": RuntimeConfig(engine="fsdp", dtype="bfloat16"),
}


@dataclass
class Trained:
    """The losses of a training, and its weights in the end."""

    loss: list[float]
    weights: dict[str, np.ndarray]


class Stopped(Exception):
    """Before the step at which a training was to stop."""


def train(config: RunConfig, tokens: Path, runtime: RuntimeConfig, resume: Path, stop: int | None = None) -> Trained:
    """Train a Mamba of two blocks, whose head is tied and part of whose matrices do not decay."""
    AcceleratorState._reset_state()
    torch.manual_seed(config.seed)
    family = find("mamba")
    baseline = family.build(fit_to_size("mamba", family.Config("mamba"), SIZE, 256), 256)
    batches = Batches(
        TokenStore.open(tokens).documents("train"), config.train.length, config.train.batch_size, config.seed
    )
    precision = "bf16" if runtime.dtype == "bfloat16" else "no"
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    trainer = Trainer(baseline, batches, config.train, runtime, resume, accelerator, lambda _: None)
    update = trainer._update

    def until(step: int) -> Tensor:
        if step == stop:
            raise Stopped
        return update(step)

    trainer._update = until  # type: ignore[method-assign]
    training = trainer.run()
    weights = whole_weights(baseline.model)
    found = baseline.model.state_dict() if weights is None else weights
    return Trained(training.loss, {name: weight.numpy() for name, weight in found.items()})


def train_along(rank: int, port: int, config: RunConfig, tokens: Path, folder: Path, answer: Connection) -> None:
    """What process `rank` of two does: every case in turn."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    for case, runtime in CASES.items():
        resume = folder / case
        if case == "fsdp resumed" and rank == 0:
            shutil.copytree(folder / LEFT, resume)
        answer.send(train(config, tokens, runtime, resume))
    torch.distributed.destroy_process_group()
