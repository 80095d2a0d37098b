"""How models are trained: one recipe for every family of a comparison (config group `train`)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrainConfig:
    """AdamW with linear warm-up and cosine decay over a fixed budget of tokens.

    The shape of the recipe is that of the TTT paper (Sun et al., arXiv 2407.04620, appendix C): betas (0.9, 0.95),
    weight decay 0.1, gradients clipped to norm 1, warm-up over a tenth of the steps, cosine to 1e-5. At each of `rates`
    every model is trained too; the best one is compared beside `learning_rate` (`harness.tuning`). `decay_all` lets
    weight decay act on norms, biases and all else, as the paper's own code does. `init_from` is the folder of another
    run: each model begins with the weights that the model of its name had there at the end, with the same seed.
    """

    tokens: int = 1_200_000
    length: int = 256
    batch_size: int = 4
    learning_rate: float = 3e-3
    rates: list[float] = field(default_factory=list)
    final_learning_rate: float = 1e-5
    warmup: float = 0.1
    weight_decay: float = 0.1
    decay_all: bool = False
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    log_every: int = 5
    checkpoint_seconds: float = 20.0
    init_from: str | None = None

    def __post_init__(self) -> None:
        for name in ("length", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}: must be at least 1")
        if self.tokens < self.tokens_per_step:
            raise ValueError(
                f"train.tokens is {self.tokens}: less than one step of train.batch_size × train.length"
                f" = {self.tokens_per_step}"
            )
        for name in ("learning_rate", "clip_norm", "checkpoint_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}: must be above 0")
        if any(rate <= self.final_learning_rate for rate in self.rates):
            raise ValueError(f"train.rates is {list(self.rates)}: each must exceed train.final_learning_rate")
        for name in ("warmup", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}: must lie in [0, 1)")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f"train.final_learning_rate is {self.final_learning_rate}: must lie between 0 and train.learning_rate"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step sees."""
        return self.batch_size * self.length

    @property
    def steps(self) -> int:
        """Optimiser steps within the budget of tokens."""
        return self.tokens // self.tokens_per_step
