"""A learning rate for each model: the same for all, and the best of a grid beside it.

One rate for every model is the first thing a reviewer objects to, a tuned one for each the second. So with
`train.rates` both are compared: `mamba` has the rate that all share, `mamba@0.01` the rate with the lowest training
loss over the last tenth of its tokens. The test documents have no say in it.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from harness.config import RunConfig
from harness.records import Tuning
from harness.train.checkpoint import finished_training

LAST = 0.1
"""Share of the tokens over which the loss is taken."""


def grid(config: RunConfig, name: str) -> dict[str, RunConfig]:
    """The config of model `name` and, under names of their own, its configs at the other rates of the grid."""
    pinned = dataclasses.replace(config, folder=str(config.run_folder))
    found = {name: config}
    if not config.model[name].checkpoint:
        for rate in config.train.rates:
            if rate != config.train.learning_rate:
                train = dataclasses.replace(config.train, learning_rate=rate)
                found[f"{name}@{rate:g}"] = dataclasses.replace(pinned, train=train)
    return found


def shared_name(name: str) -> str:
    """The model that a name at a rate of its own belongs to: mamba of mamba@0.01."""
    return name.split("@")[0]


def choose(config: RunConfig, name: str) -> Tuning:
    """What the finished trainings of a model's grid say; one that did not finish counts as infinite."""
    losses = {tried: final_loss(_folder(config, tried)) for tried in grid(config, name)}
    rates = [at.train.learning_rate for at in grid(config, name).values()]
    best = min(losses, key=lambda tried: losses[tried])
    return Tuning(rates=rates, losses=list(losses.values()), chosen=best)


def final_loss(checkpoint: Path) -> float:
    """Mean training loss in nats over the last tenth of the tokens of a finished training."""
    training = finished_training(checkpoint)
    if training is None:
        return math.inf
    begin = (1 - LAST) * training.tokens
    last = [loss for seen, loss in zip(training.tokens_seen, training.loss, strict=True) if seen > begin]
    return sum(last) / len(last)


def trained_before(run_folder: str, seed: int, name: str) -> Path:
    """The checkpoint of the model of that name (at its shared rate) in another run."""
    return Path(run_folder) / f"seed{seed}" / shared_name(name) / "checkpoint"


def _folder(config: RunConfig, name: str) -> Path:
    return config.run_folder / f"seed{config.seed}" / name / "checkpoint"
