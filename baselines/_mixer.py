"""What a sequence mixer is to the shared backbone: a layer [B, L, H] -> [B, L, H] with a state and a price.

A family file gives its options (a `MixerConfig`), a `Mixer` and a three-line `MixerFamily`; embedding, norms,
residuals, SwiGLU and head are the backbone's (`_backbone`), so that a comparison changes the mixer and nothing else.

A state is a tensor, an int, None, or a tuple, list, dict or dataclass of such; the first axis of every tensor counts
the rows of the batch. It belongs to its mixer, which may change it in place: only the one returned last is valid.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from baselines.config import BlockConfig, FamilyConfig
from baselines.registry import find

State = Any
BACKBONES = ("llama", "mamba")
CONV_KERNEL = 4


class Mixer(nn.Module, ABC):
    """One layer's sequence mixer, projections included. `options` is the complete `Config` of its family."""

    continues: bool = True
    """Whether `forward` can go on from a state by more than one token."""
    exact_causality: bool = True
    """Whether no bit of an output depends on later inputs; an FFT rounds across time, so there it is rounding."""
    kernel_path: str = "torch"
    """Which implementation the last forward took."""

    def __init__(self, options: Any, hidden_size: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor, state: State | None, keep: bool, wanted: int = 0) -> tuple[Tensor, State | None]:
        """x [B, L, H] -> y [B, L, H], going on from `state` (None: from the start); the next state if `keep`.

        If `wanted` is not 0, y of the last `wanted` tokens alone: what follows the mixing is for them.
        """

    def before_step(self, step: int, steps: int) -> None:
        """As of `SequenceModel`: called before each of the `steps` optimiser steps."""

    @classmethod
    @abstractmethod
    def count(cls, options: Any, hidden_size: int) -> int:
        """Trainable parameters, by formula."""

    @classmethod
    @abstractmethod
    def flops(cls, options: Any, hidden_size: int, length: int) -> int:
        """Floating-point operations (2 a multiply-add) of a forward of one row of `length` tokens from the start."""

    @classmethod
    def output_flops(cls, options: Any, hidden_size: int) -> int:
        """Of those, what follows the mixing and is for a wanted token alone: most often a square projection."""
        return 2 * hidden_size * hidden_size

    @classmethod
    def step_flops(cls, options: Any, hidden_size: int, length: int) -> int:
        """Those of one token after `length` tokens; of a fixed-size state what a first token costs."""
        return cls.flops(options, hidden_size, 1)

    def initialise(self) -> None:
        """Initialise, by `transformers.initialization`, what is not to be as in every Linear, Conv1d and norm."""


@dataclass
class MixerConfig(BlockConfig):
    """Options of a family in the shared backbone; sizes are taken from `size` where they are None."""

    backbone: str = "llama"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone not in BACKBONES:
            raise ValueError(f"{self.family}: backbone={self.backbone!r} must be one of {', '.join(BACKBONES)}")

    def pattern(self) -> Sequence[FamilyConfig]:
        """The options of the first layers' mixers, over again for those that follow: here one."""
        return [self]

    def layers(self) -> list[FamilyConfig]:
        """The options of each layer's mixer."""
        return list(itertools.islice(itertools.cycle(self.pattern()), self.num_layers))

    def parameters(self, vocab_size: int) -> int:
        """Tied embedding; per layer mixer, SwiGLU, two norms and, around a gated mixer, `gate_count`; the last norm."""
        assert self.hidden_size is not None
        assert self.intermediate_size is not None
        width, layers = self.hidden_size, self.layers()
        block = 3 * width * self.intermediate_size + 2 * width
        block += gate_count(width) if self.backbone == "mamba" else 0
        mixers = sum(mixer_of(options.family).count(options, width) for options in layers)
        return vocab_size * width + mixers + len(layers) * block + width


def gate_count(hidden_size: int) -> int:
    """What the mamba backbone has around a mixer: a norm and a convolution with bias before, gate and projection."""
    return hidden_size * (2 * hidden_size + CONV_KERNEL + 2)


def mixer_of(family: str) -> type[Mixer]:
    """The mixer that the module of `family` gives to the shared backbone."""
    mixer = getattr(find(family), "Mixer", None)
    if mixer is None:
        raise ValueError(f"family {family!r} has no mixer for the shared backbone")
    return mixer


def each_tensor(state: State, function: Callable[[Tensor], Tensor]) -> State:
    """`state` with `function` applied to each of its tensors."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {key: each_tensor(value, function) for key, value in state.items()}
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(each_tensor(value, function) for value in state))
    if isinstance(state, (tuple, list)):
        return type(state)(each_tensor(value, function) for value in state)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        return dataclasses.replace(state, **{name: each_tensor(value, function) for name, value in values.items()})
    return state
