"""What is measured, and how often (config group `measure`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.measure.dynamic.config import DynamicConfig
from harness.measure.recall.config import RecallConfig

CONVENTIONS = ("position", "fixed_target", "window")
"""How perplexity is scored; each is a module of `harness.measure`."""


@dataclass
class MeasureConfig:
    """Perplexity under the chosen conventions, and the timings.

    `max_length`: bytes of each test document that are scored, and the longest context of `fixed_target` (None: eight
    times the training length); `documents`: at most so many test documents (None: all); `targets`: bytes of each
    document scored under `fixed_target`; `window` and `stride` in bytes (None: the training length; the window);
    `task_limit`: samples of each task of lm-eval (None: all); `dynamic`: whether and how models go on learning while
    they are tested; `recall`: whether and how they are asked for what stood in their context.

    Timings go on until each model has had at least `repeats` turns and `seconds` of timed work at each shape, the
    models taking turns. Prompts of the time to first token have the lengths of `prefill_lengths`. `max_load`: cores
    that others may keep busy meanwhile (None: those that a timed model leaves free; .inf: as many as they like).
    """

    max_length: int | None = None
    documents: int | None = None
    conventions: list[str] = field(default_factory=lambda: ["position", "fixed_target"])
    targets: int = 64
    window: int | None = None
    stride: int | None = None
    task_limit: int | None = None
    dynamic: DynamicConfig = field(default_factory=DynamicConfig)
    recall: RecallConfig = field(default_factory=RecallConfig)
    ngrams: list[int] = field(default_factory=lambda: [3, 4])
    timing: bool = True
    prefill_lengths: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048])
    prefill_batch: int = 1
    decode_contexts: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048])
    decode_batches: list[int] = field(default_factory=lambda: [1, 8])
    decode_tokens: int = 16
    repeats: int = 5
    seconds: float = 1.0
    max_load: float | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.conventions if name not in CONVENTIONS]
        if unknown or "position" not in self.conventions:
            raise ValueError(
                f"measure.conventions is {list(self.conventions)}: choose position, which every report needs, and any"
                f" of {', '.join(CONVENTIONS[1:])}"
            )
        if self.targets < 16:
            raise ValueError(f"measure.targets is {self.targets}: must be at least 16, a block of targets")
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"measure.{name} is {value}: must be at least 1")
        if self.window and self.stride and self.stride > self.window:
            raise ValueError(
                f"measure.stride is {self.stride}: longer than measure.window={self.window}, it would skip tokens"
            )
        for name in ("prefill_batch", "decode_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"measure.{name} is {getattr(self, name)}: must be at least 1")
        for name, what in (
            ("prefill_lengths", "lengths"),
            ("decode_contexts", "lengths"),
            ("decode_batches", "batches"),
        ):
            if any(size < 1 for size in getattr(self, name)):
                raise ValueError(f"measure.{name} is {list(getattr(self, name))}: {what} must be at least 1")
        if self.max_load is not None and not self.max_load >= 0:
            raise ValueError(f"measure.max_load is {self.max_load}: must be a number of cores, 0 or more, or null")
        if any(not 1 <= order <= 5 for order in self.ngrams):
            raise ValueError(f"measure.ngrams is {list(self.ngrams)}: choose orders from 1, 2, 3, 4, 5")
        if self.max_length is not None and self.max_length < 17:
            raise ValueError(f"measure.max_length is {self.max_length}: must be at least 17")
        if self.documents is not None and self.documents < 1:
            raise ValueError(f"measure.documents is {self.documents}: must be at least 1")
