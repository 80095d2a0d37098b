"""What a model, a rival and the whole job take: raw seconds, bytes, joules and operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from harness.records.values import Values


@dataclass(kw_only=True)
class Timed(Values):
    """What every timed row holds beside the raw `seconds`, which are those of `turns` equal turns one after the other.

    `drift` is the median turn of the last third of turns over that of the first, `trend_p` the probability of so clear
    a trend by chance (`harness.measure.drift`; None for too few turns). `joules_per_token` is what the whole board of
    the GPU takes, None where that is not told.
    """

    turns: int = 0
    drift: float | None = None
    trend_p: float | None = None
    joules_per_token: float | None = None


@dataclass
class TrainStep(Timed):
    """Wall seconds of each timed training step (forward, backward, optimiser) of batch × length tokens.

    The batch is read `micro_batch` rows at a time (None: all at once) by one process.
    """

    kind: ClassVar[str] = "train_step"
    batch: int
    length: int
    seconds: list[float]
    peak_bytes: int | None
    flops: int
    micro_batch: int | None = None
    activation_checkpointing: bool = False


@dataclass
class Prefill(Timed):
    """Wall seconds of each timed prefill of batch × length tokens from an empty state."""

    kind: ClassVar[str] = "prefill"
    batch: int
    length: int
    seconds: list[float]
    peak_bytes: int | None
    state_bytes: int
    flops: int


@dataclass
class FirstToken(Timed):
    """Wall seconds from the ids of a prompt of `length` tokens, on the host, to those of a sampled next token there."""

    kind: ClassVar[str] = "first_token"
    batch: int
    length: int
    seconds: list[float]
    flops: int


@dataclass
class Decode(Timed):
    """Wall seconds of each timed single-token step after `context` tokens."""

    kind: ClassVar[str] = "decode"
    batch: int
    context: int
    seconds: list[float]
    state_bytes: int
    flops: int


@dataclass
class Benchmark(Values):
    """The same work by one of our models and by a rival, in turn: seconds of each side's timed turns, round by round.

    `cpu_seconds` and `wall_seconds` have the keys `ours`, `rival` and, where they were timed, `gemm`: the matrix
    products of our linear layers alone. A turn is `tokens` tokens. Where both sides are meant to compute the same,
    `logits_difference` is the largest between their logits and, in training, `gradient_difference` that between their
    gradients, relative to the largest gradient of each parameter.
    """

    kind: ClassVar[str] = "benchmark"
    work: str
    rival: str
    rival_path: str
    batch: int
    length: int
    tokens: int
    cpu_seconds: dict[str, list[float]]
    wall_seconds: dict[str, list[float]]
    logits_difference: float | None
    gradient_difference: float | None


@dataclass
class Finish(Values):
    """Closes a run of the whole job: what it cost, and its parts in wall seconds and in CPU seconds of all processes.

    The wall seconds begin with the job, the CPU seconds with its process (imports included).
    """

    kind: ClassVar[str] = "finish"
    wall_seconds: float
    cpu_seconds: float
    parts: dict[str, float]
    cpu_parts: dict[str, float] = field(default_factory=dict)
