"""The learning rate as a function of the step alone, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math

from harness.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of optimiser step `step` (counted from 0): linear warm-up, then cosine to `final_learning_rate`."""
    warmup_steps = int(config.warmup * config.steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, config.steps - 1 - warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
