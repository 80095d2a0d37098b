"""How a model came about, and whether it is what it claims to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.records.values import Values


@dataclass
class Training(Values):
    """A training run: `loss` in nats per token of each logged interval, at `tokens_seen`.

    CPU seconds are those of all processes that trained it, compilers included. The last five fields say how those did
    that ended it; where they hold the defaults, the row may be older than the fields.
    """

    kind: ClassVar[str] = "training"
    parameters: int
    tokens: int
    steps: int
    train_length: int
    tokens_seen: list[int]
    loss: list[float]
    wall_seconds: float
    cpu_seconds: float
    checkpoint: str
    learning_rate: float | None = None
    engine: str = ""
    processes: int = 1
    micro_batch: int | None = None
    activation_checkpointing: bool = False
    compile: bool = False


@dataclass
class Tuning(Values):
    """The learning rates that a model was trained at, with its loss over the last tenth of training at each.

    The first is the rate that all models share; `chosen` names the model with the lowest loss (`mamba@0.01`, or `mamba`
    if that is the shared rate). A training that failed has an infinite loss.
    """

    kind: ClassVar[str] = "tuning"
    rates: list[float]
    losses: list[float]
    chosen: str


@dataclass
class Loaded(Values):
    """A model that was loaded instead of trained; `context_limit` in its tokens, None where there is none."""

    kind: ClassVar[str] = "loaded"
    parameters: int
    checkpoint: str
    context_limit: int | None = None


@dataclass
class Check:
    """One check of the gate: the `value` it found and the `bound` that it must not exceed."""

    name: str
    passed: bool
    value: float
    bound: float

    def __str__(self) -> str:
        """Such as 'batch = row by row (3.1e-03 > 1e-04)'."""
        return f"{self.name} ({self.value:.1e} {'≤' if self.passed else '>'} {self.bound:.0e})"


@dataclass
class Gate(Values):
    """Whether the model is what it claims to be: causal, equal step by step, normalised, finite."""

    kind: ClassVar[str] = "gate"
    checks: list[Check]

    @property
    def failed(self) -> list[Check]:
        """The checks that found more than their bound."""
        return [check for check in self.checks if not check.passed]
