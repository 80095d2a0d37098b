"""Hybrids: a list of mixers, one a layer and over again, in the shared backbone. A new hybrid needs no code.

Each entry is a family's name, or its name with options, as in the families' own files:

    mixers: [transformer, {family: ttt, learner: mlp}]

Most models that pair attention with a recurrent layer are of this kind (Jamba, arXiv 2403.19887; Griffin, arXiv
2402.19427). With one entry, it is that mixer alone in the backbone that all others share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from baselines._mixer import MixerConfig, mixer_of
from baselines._mixer_family import MixerFamily
from baselines.config import FamilyConfig
from baselines.registry import find


@dataclass
class Config(MixerConfig):
    """Options of a hybrid; sizes are taken from `size` where they are None."""

    family: str = "hybrid"
    mixers: list[Any] = field(default_factory=lambda: ["transformer", "ttt"])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mixers:
            raise ValueError("hybrid: mixers=[] names no family")
        for entry in self.mixers:
            self._options(entry)

    def pattern(self) -> Sequence[FamilyConfig]:
        """The options of each entry, sizes included."""
        return [self._options(entry) for entry in self.mixers]

    def _options(self, entry: Any) -> FamilyConfig:
        given = {"family": entry} if isinstance(entry, str) else dict(entry)
        if "family" not in given:
            raise ValueError(f"hybrid: mixers has an entry without a family: {given}")
        mixer_of(given["family"])
        family: Any = find(given["family"]).Config
        known = {option.name for option in dataclasses.fields(family)}
        if unknown := set(given) - known:
            raise ValueError(f"hybrid: mixers: {given['family']} has no option {', '.join(sorted(unknown))}")
        sizes = {"hidden_size": self.hidden_size, "head_dim": self.head_dim}
        return family(**{name: value for name, value in sizes.items() if name in known}, **given)


class Hybrid(MixerFamily):
    """Different mixers in turn behind the common interface."""

    Config = Config
