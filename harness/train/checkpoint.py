"""What survives a `kill -9`: the resume state while a model trains, and the finished checkpoint.

Everything is written to a temporary name, flushed to disk and renamed, so a reader sees either nothing or the
whole. A finished checkpoint folder holds safetensors weights and config.json (readable by `from_pretrained`) and,
written last, `training.json`, the `.done` mark, which also says how the training went.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.records import Training

DONE = "training.json"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Keep the state of a training in progress (replaces the one before)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_resume(path: Path) -> dict[str, Any] | None:
    """The state that `save_resume` kept, or None."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save_checkpoint(folder: Path, save: Callable[[Path], None], training: Training) -> None:
    """Write a finished model: `save` fills a temporary folder, the done mark comes last, then the rename."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save(temporary)
    (temporary / DONE).write_text(json.dumps(dataclasses.asdict(training)))
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def finished_training(folder: Path) -> Training | None:
    """How the training of a finished checkpoint went, or None if the folder is not a finished one."""
    mark = folder / DONE
    return Training(**json.loads(mark.read_text())) if mark.exists() else None
