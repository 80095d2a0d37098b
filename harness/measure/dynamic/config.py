"""Options of dynamic evaluation (`measure.dynamic`), without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

METHODS = ("none", "sgd", "rms")
PARAMETERS = ("all", "lora", "last_quarter_mlp")


@dataclass
class DynamicConfig:
    """How a model adapts to the document it is tested on (none: it does not, and this is not measured).

    `parameters`: which weights move (all, low-rank additions of rank `rank` to every linear layer, the MLPs of the last
    quarter of the blocks). A document is read `segment` tokens at a time, each with up to `context` tokens before it
    (None: what is left of the training length), and one step is taken on a segment after it was scored. The step size
    is the best of `learning_rates` on `tuning_documents` training documents; `decay` pulls weights back to where they
    began. At most `max_length` tokens of `documents` test documents are read (None: as in `measure`).
    """

    method: str = "none"
    parameters: str = "all"
    rank: int = 8
    segment: int = 64
    context: int | None = None
    learning_rates: list[float] = field(default_factory=list)
    decay: float = 0.0
    tuning_documents: int = 2
    documents: int | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (("method", METHODS), ("parameters", PARAMETERS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"measure.dynamic.{name} is {getattr(self, name)!r}: choose one of {', '.join(choices)}"
                )
        for name in ("rank", "segment", "tuning_documents", "documents", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"measure.dynamic.{name} is {value}: must be at least 1")
        if self.context is not None and self.context < 0:
            raise ValueError(f"measure.dynamic.context is {self.context}: must not be negative")
        if any(rate <= 0 for rate in self.learning_rates):
            raise ValueError(f"measure.dynamic.learning_rates is {list(self.learning_rates)}: must be positive")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"measure.dynamic.decay is {self.decay}: must lie between 0 and 1")

    @property
    def rates(self) -> list[float]:
        """The step sizes to choose from."""
        if self.learning_rates:
            return list(self.learning_rates)
        return [3e-5, 1e-4, 3e-4, 1e-3] if self.method == "rms" else [0.01, 0.03, 0.1, 0.3]
