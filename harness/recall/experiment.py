"""One model on one task: trained on all sizes mixed, tested on each."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.nn import functional as F

from baselines.config import FamilyConfig
from baselines.interface import SequenceModel
from baselines.registry import find
from harness.recall.config import RecallConfig
from harness.recall.tasks import IGNORED, TASKS, VOCAB_SIZE, batch
from harness.records import Recall
from harness.train.config import TrainConfig
from harness.train.loop import make_optimizer
from harness.train.schedule import learning_rate

TRAIN, TEST = 0, 1
"""Begin the seeds of training and of test sequences."""


def measure(config: RecallConfig, family: FamilyConfig) -> Recall:
    """Train and test the model of a complete `family` config on one CPU thread."""
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    started = time.process_time()
    model = find(family.family).build(family, VOCAB_SIZE)
    train(config, model)
    longest = torch.from_numpy(batch(config.task, 1, max(config.sizes), config.seed, TEST).ids)
    with torch.inference_mode():
        accuracies = [accuracy(config, model, n) for n in config.sizes]
        state_bytes = model.state_bytes(model.prefill(longest)[1])
    return Recall(
        config.task, list(config.sizes), accuracies, TASKS[config.task].chance, config.test_rows, config.steps,
        model.model.num_parameters(), state_bytes, time.process_time() - started,
    )  # fmt: skip


def train(config: RecallConfig, model: SequenceModel) -> None:
    """The recipe of the harness, with `steps` steps; each takes one size, in turn, and as many rows as fit.

    Short sequences come first, longer ones join until half of the steps are done: how to look up is found quickly where
    there is little to confuse, and hardly at all where there is much.
    """
    recipe = TrainConfig(tokens=config.steps, length=1, batch_size=1, learning_rate=config.learning_rate)
    optimizer = make_optimizer(model.model, recipe)
    model.model.train()
    for step in range(config.steps):
        known = min(len(config.sizes), 1 + 2 * step * len(config.sizes) // config.steps)
        n = config.sizes[step % known]
        rows = config.tokens // (TASKS[config.task].length * n)
        ids, targets = map(torch.from_numpy, batch(config.task, rows, n, config.seed, TRAIN, step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        logits = model.model(ids, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.model.eval()


def accuracy(config: RecallConfig, model: Any, n: int) -> float:
    """Share of right answers on new sequences of size n."""
    ids, targets = map(torch.from_numpy, batch(config.task, config.test_rows, n, config.seed, TEST, n))
    asked = targets != IGNORED
    return float((model.forward(ids).argmax(-1) == targets)[asked].double().mean())
