"""Options of zero-shot recall (`measure.recall`), without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

TASKS = ("passkey", "needle", "repetition")
SHORTEST = 128
"""Tokens of the shortest context: less would hardly hold a key and its question."""


@dataclass
class RecallConfig:
    """Which tasks of recall every model is asked (`tasks` []: none, and this is not measured).

    `lengths`: tokens of context before the answer ([]: 128, 256, 512 … up to `measure.max_length`); they may exceed the
    longest document, for test documents are joined. `depths`: where in it the key stands, in percent (0: at the
    beginning, 100: right before the question). `repeats`: keys and haystacks drawn for each task.
    """

    tasks: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=lambda: [0, 25, 50, 75, 100])
    repeats: int = 10

    def __post_init__(self) -> None:
        if not set(self.tasks) <= set(TASKS) or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(
                f"measure.recall.tasks is {list(self.tasks)}: choose from {', '.join(TASKS)}, each at most once"
            )
        if self.lengths != sorted(set(self.lengths)) or min(self.lengths, default=SHORTEST) < SHORTEST:
            raise ValueError(
                f"measure.recall.lengths is {list(self.lengths)}: give rising lengths of at least {SHORTEST} tokens"
            )
        if (
            not self.depths
            or self.depths != sorted(set(self.depths))
            or not 0 <= self.depths[0] <= self.depths[-1] <= 100
        ):
            raise ValueError(f"measure.recall.depths is {list(self.depths)}: give rising percentages from 0 to 100")
        if self.repeats < 1:
            raise ValueError(f"measure.recall.repeats is {self.repeats}: must be at least 1")

    def contexts(self, max_length: int) -> list[int]:
        """The lengths to measure; ValueError where powers of two up to `max_length` are wanted and there is none."""
        found = list(self.lengths) or [SHORTEST << k for k in range((max_length // SHORTEST).bit_length())]
        if not found:
            raise ValueError(
                f"measure.recall begins at {SHORTEST} tokens, measure.max_length (8 × train.length if null) is "
                f"{max_length}: raise it, or give measure.recall.lengths"
            )
        return found
