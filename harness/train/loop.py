"""The training loop, the same for every family.

The batch of a step depends on the seed and the step alone, the learning rate on the step alone; so weights, optimiser
state and step number are all that a resumed run needs to continue to the same bits (on a CPU at a fixed thread
count). Nothing is read back from the device between two log intervals. Accelerate brings the loop to one CPU, one GPU
or the processes that torchrun starts; `harness.train.engine` says how those share a batch and a model.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.interface import SequenceModel
from harness.data.batches import TrainingBatches
from harness.records import Training
from harness.runtime import RuntimeConfig
from harness.train.config import TrainConfig
from harness.train.engine import AsTrained, before_the_last, shares, spread
from harness.train.resume import load_resume, save_resume
from harness.train.schedule import learning_rate

Progress = Callable[[dict[str, Any]], None]


class NonFiniteLoss(ArithmeticError):
    """Training met a loss or gradient that is not a number."""


def loss_of(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy in nats of `windows` [B, L + 1]: float32 log-softmax of tokens 1 … L given those before."""
    logits = model(windows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices alone, not on norms, biases and what a family exempts (`_no_weight_decay`).

    With `decay_all` on every parameter.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in model.parameters():
        plain = parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False)
        (exempt if plain and not config.decay_all else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def cpu_time() -> float:
    """CPU seconds of this process and of the compilers that it has run."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Trainer:
    """Trains one model; `run` may be called anew after any interruption and continues from the last resume state."""

    def __init__(
        self,
        baseline: SequenceModel,
        batches: TrainingBatches,
        config: TrainConfig,
        runtime: RuntimeConfig,
        resume_folder: Path,
        accelerator: Accelerator,
        progress: Progress,
    ) -> None:
        if config.batch_size < accelerator.num_processes:
            raise ValueError(
                f"train.batch_size={config.batch_size} cannot be shared by {accelerator.num_processes} processes"
            )
        self.baseline, self.batches, self.config, self.runtime = baseline, batches, config, runtime
        self.resume_folder, self.accelerator, self.progress = resume_folder, accelerator, progress
        AsTrained(baseline.model, runtime).install()
        self.model = spread(baseline.model, runtime.engine, accelerator)
        self.optimizer = make_optimizer(baseline.model, config)
        self.step = 0
        self.loss: list[float] = []
        self.tokens_seen: list[int] = []
        self.wall_seconds, self.cpu_seconds = 0.0, 0.0

    def run(self) -> Training:
        """Train to the end of the budget; NonFiniteLoss if the loss leaves the numbers."""
        self._restore()
        self.model.train()
        wall, cpu = time.perf_counter(), cpu_time()
        last_save, running = wall, torch.zeros((), device=self.accelerator.device)
        for step in range(self.step, self.config.steps):
            running += self._update(step)
            self.step = step + 1
            if self.step % self.config.log_every and self.step < self.config.steps:
                continue
            self._log(running)
            running.zero_()
            now = time.perf_counter()
            self.wall_seconds, wall = self.wall_seconds + now - wall, now
            used, cpu = cpu_time() - cpu, cpu_time()
            age, used = self._means(now - last_save, used)
            self.cpu_seconds += used * self.accelerator.num_processes
            if age > self.config.checkpoint_seconds:
                self._keep()
                last_save = now
        self.baseline.model.eval()
        return self._summary()

    def _update(self, step: int) -> Tensor:
        self.baseline.before_step(step, self.config.steps)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        windows = torch.from_numpy(self.batches.batch(step)).to(self.accelerator.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        *others, last = shares(windows, rank, world, self.runtime.micro_batch)
        total = torch.zeros((), device=self.accelerator.device)
        for part in others:
            with before_the_last(self.model):
                total += self._gradients(*part)
        total += self._gradients(*last)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _gradients(self, windows: Tensor, weight: float) -> Tensor:
        """Add the gradients of the weighted mean loss of `windows`, and return that."""
        with self.accelerator.autocast():
            loss = weight * loss_of(self.model, windows)
        loss.backward()
        return loss.detach()

    def _log(self, running: Tensor) -> None:
        steps = self.step - (self.tokens_seen[-1] // self.config.tokens_per_step if self.tokens_seen else 0)
        mean = float(self.accelerator.reduce(running, "mean")) / steps
        self.loss.append(mean)
        self.tokens_seen.append(self.step * self.config.tokens_per_step)
        if not math.isfinite(mean):
            raise NonFiniteLoss(f"the loss became {mean} within {self.tokens_seen[-1]:,} tokens")
        total = self.config.steps * self.config.tokens_per_step
        self.progress({"done": self.tokens_seen[-1], "total": total, "loss": mean})

    def _means(self, *seconds: float) -> list[float]:
        """The mean over processes of each: what all agree on, as on the step at which they save."""
        own = torch.tensor(seconds, dtype=torch.float64, device=self.accelerator.device)
        means: list[float] = self.accelerator.reduce(own, "mean").tolist()
        return means

    def _keep(self) -> None:
        names = ("step", "loss", "tokens_seen", "wall_seconds", "cpu_seconds")
        progress = {name: getattr(self, name) for name in names}
        save_resume(self.resume_folder, progress, self.baseline.model, self.optimizer, self.accelerator)

    def _restore(self) -> None:
        progress = load_resume(self.resume_folder, self.baseline.model, self.optimizer, self.accelerator)
        for name, value in (progress or {}).items():
            setattr(self, name, value)

    def _summary(self) -> Training:
        return Training(
            parameters=sum(p.numel() for p in self.baseline.model.parameters()),
            tokens=self.step * self.config.tokens_per_step,
            steps=self.step,
            train_length=self.config.length,
            tokens_seen=self.tokens_seen,
            loss=self.loss,
            wall_seconds=self.wall_seconds,
            cpu_seconds=self.cpu_seconds,
            checkpoint="",
            learning_rate=self.config.learning_rate,
            engine=self.runtime.engine,
            processes=self.accelerator.num_processes,
            micro_batch=self.runtime.micro_batch,
            activation_checkpointing=self.runtime.activation_checkpointing,
            compile=self.runtime.compile,
        )
