"""What a family must be able to say about itself before any model is built: its options and its size.

This module imports no torch, so that a whole comparison can be composed, checked and sized in no time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

MATCHES = ("parameters", "train_flops", "state_bytes", "shape")


class Unsupported(RuntimeError):
    """A family that cannot run here (no GPU, a package not installed); the message, one line, says what it needs.

    Raised by `candidates` or `parameters` (of sizes known or not), and by building or loading, it becomes a row of
    status `unsupported`, and the comparison goes on.
    """


@dataclass
class SizeConfig:
    """The budget that all models of a comparison share (config group `size`).

    `match` says what is held equal within the relative `tolerance`: trainable `parameters`, the target of which is that
    number; `train_flops` or `state_bytes` (after a training sequence), whose target is what the first model, fitted to
    `parameters`, costs; or nothing but the `shape`. `hidden_size`, `num_layers`, `head_dim` and, for `shape`,
    `intermediate_size` are the widths and depth that families take over where these words mean something for them.
    """

    parameters: int = 700_000
    tolerance: float = 0.02
    hidden_size: int = 128
    num_layers: int = 4
    head_dim: int = 32
    intermediate_size: int | None = None
    match: str = "parameters"

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise ValueError(f"size.match is {self.match!r}: choose one of {', '.join(MATCHES)}")
        if self.match == "shape" and self.intermediate_size is None:
            raise ValueError("size.match=shape needs size.intermediate_size; choose a size of the paper, as size=125m")
        for name in ("parameters", "hidden_size", "num_layers", "head_dim", "intermediate_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"size.{name} is {getattr(self, name)}: must be at least 1")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"size.tolerance is {self.tolerance}: must lie between 0 and 1")
        if self.hidden_size % self.head_dim:
            raise ValueError(f"size.hidden_size={self.hidden_size} is not a multiple of size.head_dim={self.head_dim}")


@dataclass
class FamilyConfig:
    """Options that every family has; each family's `Config` adds its own. None means: taken from `size`.

    `family` names the module that holds the family: `mamba` is `baselines/mamba.py`, and a dotted name is any
    importable module of the user's own. `checkpoint` is a folder (or hub name) to load instead of training.
    """

    family: str
    checkpoint: str | None = None

    def candidates(self, size: SizeConfig) -> Iterable[Self]:
        """Complete configs (no None left) of about `size`, from which the nearest in parameters is taken."""
        raise NotImplementedError(f"{type(self).__module__} does not say how it scales with `size`")

    def exact(self, size: SizeConfig) -> Self | None:
        """The complete config of exactly the shape of `size`; None: it has none and meets `size.parameters`."""
        return None

    def parameters(self, vocab_size: int) -> int:
        """Trainable parameters of the model that this complete config builds, by formula."""
        raise NotImplementedError(f"{type(self).__module__} does not count its parameters")


C = TypeVar("C", bound=FamilyConfig)


def fit_to_size(name: str, config: C, size: SizeConfig, vocab_size: int) -> C:
    """The candidate of `config` nearest to `size.parameters`; ValueError if none is within the tolerance."""
    nearest = min(config.candidates(size), key=lambda c: abs(c.parameters(vocab_size) - size.parameters))
    found = nearest.parameters(vocab_size)
    deviation = found / size.parameters - 1
    if abs(deviation) > size.tolerance:
        raise ValueError(
            f"model.{name}: the nearest setting has {found:,} parameters, {deviation:+.1%} from"
            f" size.parameters={size.parameters:,} (size.tolerance={size.tolerance:.0%}): leave its sizes null,"
            " or raise size.tolerance"
        )
    return nearest


def completed(config: C, **values: Any) -> C:
    """A copy of `config` in which the named options that are still None take these values."""
    missing = {k: v for k, v in values.items() if getattr(config, k) is None}
    return dataclasses.replace(config, **missing)


@dataclass
class BlockConfig(FamilyConfig):
    """Sizes of the families that stack blocks of a mixer with heads and a SwiGLU layer; None: taken from `size`."""

    hidden_size: int | None = None
    num_layers: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    """Width of the SwiGLU layer; None: whatever brings the model to `size.parameters`, in steps of 8."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "head_dim", "intermediate_size"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{self.family}: {name}={value} must be positive")
        if self.head_dim is not None and self.head_dim % 2:
            raise ValueError(f"{self.family}: head_dim={self.head_dim} must be even, rotary positions turn pairs")
        if self.hidden_size is not None and self.head_dim is not None and self.hidden_size % self.head_dim:
            raise ValueError(
                f"{self.family}: hidden_size={self.hidden_size} is not a multiple of head_dim={self.head_dim}"
            )

    def exact(self, size: SizeConfig) -> Self:
        """The width, depth, head width and SwiGLU width of `size`."""
        names = ("hidden_size", "num_layers", "head_dim", "intermediate_size")
        return completed(self, **{name: getattr(size, name) for name in names})

    def candidates(self, size: SizeConfig) -> Iterable[Self]:
        """The shape of `size` with every SwiGLU width up to 16 times the hidden size, in steps of 8."""
        shape = completed(self, hidden_size=size.hidden_size, num_layers=size.num_layers, head_dim=size.head_dim)
        for intermediate_size in range(8, 16 * (shape.hidden_size or 0) + 8, 8):
            yield completed(shape, intermediate_size=intermediate_size)
