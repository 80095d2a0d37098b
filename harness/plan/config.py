"""The options of a plan: those of the main job, and on which hardware, for which seeds it is to be costed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.config import RunConfig, to_run_config, typed_rest
from harness.plan.hardware import HERE, NAMED, UTILISATION


@dataclass
class PlanOptions:
    """`hardware`: one or a list of a100, h100, h200 and here; `utilisation`: the share of the named ones' peak.

    `seeds`: those that will be run ([]: the one of the config).
    """

    hardware: Any = field(default_factory=lambda: [*NAMED, HERE])
    utilisation: float = UTILISATION
    seeds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hardware = [self.hardware] if isinstance(self.hardware, str) else list(self.hardware or [])
        if not self.hardware or not set(self.hardware) <= {*NAMED, HERE}:
            raise ValueError(f"hardware is {self.hardware}: choose any of {', '.join((*NAMED, HERE))}")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is {self.utilisation}: must lie above 0 and not above 1")


@dataclass
class PlanConfig(RunConfig, PlanOptions):
    """What Hydra composes: the config of a run with the options of a plan beside it."""


def to_plan(composed: DictConfig) -> tuple[RunConfig, PlanOptions]:
    """The checked objects of a composed `PlanConfig`."""
    own = [option.name for option in dataclasses.fields(PlanOptions)]
    options = typed_rest(PlanOptions, OmegaConf.masked_copy(composed, own))
    config = to_run_config(OmegaConf.masked_copy(composed, [str(key) for key in composed if key not in own]))
    return config, dataclasses.replace(options, seeds=options.seeds or [config.seed])


def seeds_of(arguments: list[str]) -> list[str]:
    """The command line with a sweep over seeds as `seeds`; other sweeps are left to Hydra, which plans each."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    swept = {
        given.key_or_group: argument
        for argument in arguments
        if "=" in argument and not argument.startswith("-")
        for given in OverridesParser.create().parse_overrides([argument])
        if given.is_sweep_override()
    }
    if "seed" not in swept:
        return arguments
    (given,) = OverridesParser.create().parse_overrides([swept["seed"]])
    seeds = ",".join(str(seed) for seed in given.sweep_string_iterator())
    rest = [argument for argument in arguments if argument != swept["seed"]]
    if len(swept) == 1:
        rest = [argument for argument in rest if argument not in ("-m", "--multirun")]
    return [*rest, f"seeds=[{seeds}]"]
