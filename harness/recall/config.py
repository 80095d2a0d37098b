"""Options of the recall experiment (`conf/recall.yaml`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from baselines.config import SizeConfig
from harness.config import typed_models, typed_rest
from harness.recall.tasks import TASKS


@dataclass
class RecallConfig:
    """Small models, one task, several sizes of it.

    Every model is trained on a mixture of all `sizes`, `tokens` of them a step for `steps` steps, and tested on
    `test_rows` new sequences of each. The models' shape is that of `size`; its `tolerance` is wide, for with a
    fixed depth not every family meets a budget, and their numbers of parameters are in the records.
    """

    model: dict[str, Any] = field(default_factory=dict)
    size: SizeConfig = field(default_factory=SizeConfig)
    task: str = "mqar"
    sizes: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64])
    steps: int = 3000
    tokens: int = 768
    learning_rate: float = 3e-3
    test_rows: int = 64
    seed: int = 0
    workers: int | None = None
    output: str = "results/recall"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}: choose one of {', '.join(TASKS)}")
        task = TASKS[self.task]
        if not self.sizes or min(self.sizes) < 2 or max(self.sizes) > task.largest:
            raise ValueError(f"sizes is {list(self.sizes)}: numbers from 2 to {task.largest} with task={self.task}")
        if self.tokens < task.length * max(self.sizes):
            raise ValueError(f"tokens is {self.tokens}: the longest sequence has {task.length * max(self.sizes)}")
        for name in ("steps", "test_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: must be above 0")

    def identity(self) -> dict[str, Any]:
        """What makes this experiment this one."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in ("output", "workers")}


def register_schema() -> None:
    """Tell Hydra the types of `conf/recall.yaml`."""
    ConfigStore.instance().store(name="recall_schema", node=RecallConfig)


def to_recall_config(composed: DictConfig) -> RecallConfig:
    """The checked object of a composed config; ValueError in one line where something is off."""
    config = typed_rest(RecallConfig, composed)
    config.model = typed_models(composed)
    return config
