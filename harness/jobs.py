"""What a worker process is told: plain data that both ends know, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from baselines.config import FamilyConfig
from harness.config import RunConfig
from harness.records import Decode, FirstToken, Prefill, TrainStep


@dataclass(frozen=True)
class Shape:
    """One thing to time: a kind of scenario (train_step, prefill, first_token, decode), its length and its rows."""

    kind: str
    length: int
    batch: int


def shapes(config: RunConfig) -> list[Shape]:
    """Everything that a comparison times."""
    train, measure = config.train, config.measure
    return [
        Shape(TrainStep.kind, train.length, train.batch_size),
        *(Shape(Prefill.kind, length, measure.prefill_batch) for length in measure.prefill_lengths),
        *(Shape(FirstToken.kind, length, 1) for length in measure.prefill_lengths),
        *(
            Shape(Decode.kind, context, batch)
            for batch in measure.decode_batches
            for context in measure.decode_contexts
        ),
    ]


@dataclass(frozen=True)
class Job:
    """One model (or, with `family` None, one n-gram floor) of a comparison.

    `device` is resolved (cpu or cuda); `index` counts the models of the comparison.
    """

    name: str
    index: int
    family: FamilyConfig | None
    config: RunConfig
    device: str
    tokens_folder: Path

    @property
    def folder(self) -> Path:
        """Where this model's files of this seed lie, inside the run folder."""
        return self.config.run_folder / f"seed{self.config.seed}" / self.name

    @property
    def checkpoint(self) -> Path:
        """Folder of the trained model."""
        return self.folder / "checkpoint"
