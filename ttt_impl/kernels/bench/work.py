"""What is timed: one layer's inner loop over tokens that are already projected."""

from typing import Literal, NamedTuple

Task = Literal["forward", "train", "decode"]
"""Prefill without gradients; forward and backward; one token after a state."""


class Work(NamedTuple):
    """A task at a shape."""

    learner: str
    task: Task
    batch: int
    length: int
    """Tokens of a sequence; for decoding those that attention looks back on."""
    heads: int = 32
    width: int = 64
    """Head dimension f."""

    @property
    def tokens(self) -> int:
        """Tokens that one call reads."""
        return self.batch * (1 if self.task == "decode" else self.length)


def plan(quick: bool) -> list[Work]:
    """The comparisons of a run; prefill first, since the predictions are about it."""
    learners = ("linear", "mlp")
    sizes = [(1, 2048)] if quick else [(1, 2048), (4, 2048), (16, 2048), (64, 2048), (1, 8192)]
    work = [Work(learner, "forward", *size) for learner in learners for size in sizes]
    work += [Work(learner, "train", *size) for learner in learners for size in sizes[: 1 if quick else 3]]
    batches = (1, 64) if quick else (1, 16, 64)
    work += [Work(learner, "decode", batch, 2048) for learner in learners for batch in batches]
    return work if quick else [*work, Work("linear", "forward", 4, 2048, 16, 96), Work("linear", "train", 1, 512)]
