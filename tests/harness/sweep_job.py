"""A job for Hydra's launchers that does next to nothing, and imports as much."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig


def leaves_a_mark(composed: DictConfig) -> int:
    """A job that fails at seed 1 and finds seed 2 impossible."""
    (Path(composed.output) / f"{composed.seed}").write_text(str(os.getpid()))
    if composed.seed == 2:
        raise ValueError("seed is 2: must be another")
    return int(composed.seed)
