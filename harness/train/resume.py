"""The resume state of a training in progress: what a `kill -9` of one process or of all leaves to go on from.

Each state is a folder `step-<number>` that all processes write together by torch.distributed.checkpoint, everyone its
shards and what all hold whole once, so any number of processes under any engine can read it, to the same bits. It bears
that name only when it is complete and on disk; the one before is removed after that.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch import Tensor, nn

PROGRESS = "progress.json"


def save_resume(
    folder: Path, progress: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> None:
    """Keep weights, optimiser and `progress` (numbers, its `step` among them) in place of what was kept before."""
    final = folder / f"step-{progress['step']:09d}"
    temporary = folder / f".{final.name}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    dcp.save(tensors_of(model, optimizer), checkpoint_id=temporary, no_dist=accelerator.num_processes == 1)
    if accelerator.is_main_process:
        with (temporary / PROGRESS).open("w") as file:
            json.dump(progress, file)
            file.flush()
            os.fsync(file.fileno())
        before = states(folder)
        temporary.rename(final)
        for state in before:
            shutil.rmtree(state)


def load_resume(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> dict[str, Any] | None:
    """Bring weights and optimiser to the last state in `folder` and return its progress; None if there is none."""
    if not (found := states(folder)):
        return None
    dcp.load(tensors_of(model, optimizer), checkpoint_id=found[-1], no_dist=accelerator.num_processes == 1)
    progress: dict[str, Any] = json.loads((found[-1] / PROGRESS).read_text())
    return progress


def states(folder: Path) -> list[Path]:
    """The complete states in `folder`, the last one last: two for a moment, if a kill came between the two moves."""
    return sorted(folder.glob("step-*"))


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Weights and buffers, and AdamW's step and moments by the name of their parameter (zeros before the first step).

    The tensors are those in use: what is read into them is loaded.
    """
    moments = {}
    for name, parameter in model.named_parameters():
        if not optimizer.state[parameter]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
        moments[name] = optimizer.state[parameter]
    weights: dict[str, Tensor] = model.state_dict()
    return {"model": weights, "optimizer": moments}
