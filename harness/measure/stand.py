"""Where one model stands to be timed: its warmed scenarios, by shape."""

from __future__ import annotations

import torch

from baselines.config import Unsupported
from baselines.interface import SequenceModel
from harness.config import RunConfig
from harness.jobs import Shape
from harness.measure.clock import WallClock, clock_for
from harness.measure.energy import board_joules, joules_per_token
from harness.measure.scenarios import (
    DecodeScenario,
    FirstTokenScenario,
    PrefillScenario,
    Scenario,
    TrainStepScenario,
)
from harness.records import Decode, FirstToken, Prefill, Timed, TrainStep

READERS: dict[str, type[PrefillScenario] | type[FirstTokenScenario]] = {
    Prefill.kind: PrefillScenario, FirstToken.kind: FirstTokenScenario,
}  # fmt: skip


def require_within_limit(model: SequenceModel, tokens: int) -> None:
    """Unsupported if that many tokens reach beyond the model's own limit: it would stop early and look fast."""
    limit = model.context_limit
    if limit is not None and tokens > limit:
        raise Unsupported(f"{tokens} tokens: the model's context ends at {limit}")


class Stand:
    """The scenarios of one model: `baseline` trains; `measured`, in the format of the measurements, does the rest."""

    def __init__(self, baseline: SequenceModel, measured: SequenceModel, config: RunConfig, device: str) -> None:
        self.baseline, self.measured, self.config, self.device = baseline, measured, config, device
        self.scenarios: dict[Shape, Scenario] = {}

    def warm(self, shape: Shape) -> None:
        """Prepare and warm a scenario."""
        self.scenarios[shape] = self.scenario(shape)
        self.scenarios[shape].warm()

    def scenario(self, shape: Shape) -> Scenario:
        """A scenario that is not prepared yet; Unsupported where it asks for more tokens than the model takes."""
        decoded = self.config.measure.decode_tokens
        if shape.kind == TrainStep.kind:
            return TrainStepScenario(self.baseline, self.device, self.config.train, self.config.runtime)
        if shape.kind == Decode.kind:
            require_within_limit(self.measured, shape.length + decoded)
            return DecodeScenario(self.measured, self.device, shape.batch, shape.length, decoded)
        require_within_limit(self.measured, shape.length)
        return READERS[shape.kind](self.measured, self.device, shape.batch, shape.length)

    def turn(self, shape: Shape) -> list[float]:
        """Seconds of one turn of a warmed scenario."""
        scenario = self.scenarios[shape]
        return scenario.take_turn(WallClock() if scenario.ends_on_host else clock_for(self.device))

    def values(self, shape: Shape) -> Timed:
        """All that was measured of a scenario, which is then let go; where energy can be known, it is measured now."""
        scenario, joules = self.scenarios.pop(shape), board_joules(self.device)
        if joules:
            seconds = self.config.measure.seconds
            scenario.joules = joules_per_token(scenario.repeat, joules, seconds, torch.cuda.synchronize)
        return scenario.values()
