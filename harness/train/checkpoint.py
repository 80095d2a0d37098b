"""The finished checkpoint: a folder that a reader sees whole or not at all.

It is written under a temporary name, flushed to disk and renamed. It holds safetensors weights and config.json
(readable by `from_pretrained`) and, written last, `training.json`, the mark of being done, which also says how the
training went.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from harness.records import Training

DONE = "training.json"


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
