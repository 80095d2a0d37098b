"""A model made smaller, so that what one of 1.3B parameters needs can be found on any machine in seconds.

Most models are some layers over and over. Where parameters and FLOPs go on in a straight line with the depth, bytes
and seconds do too: a model of one such part and one of two say what all of them need. The width stays what it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from baselines.config import FamilyConfig
from baselines.interface import SequenceModel
from baselines.registry import find

BLOCK = 64
"""Lengths are multiples of this: families that work by chunks pad to them."""


DRAWS = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}


def without_weights(family: FamilyConfig, vocab_size: int) -> SequenceModel:
    """The model on the `meta` device, where it takes no memory and hardly any time."""
    with torch.device("meta"):
        return find(family.family).build(family, vocab_size)


def of_checkpoint(family: FamilyConfig) -> SequenceModel:
    """What the config beside a checkpoint describes, on the `meta` device; ValueError if it cannot be had here."""
    source = Path(str(family.checkpoint))
    folder, options = (source.parent, {"gguf_file": source.name}) if source.suffix == ".gguf" else (source, {})
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, **options)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{source}: {str(error).splitlines()[0]}") from None
    baseline = object.__new__(find(family.family))  # as `load` makes it, but for the tokenizer that some come with
    SequenceModel.__init__(baseline, model)
    return baseline


def with_weights(family: FamilyConfig, vocab_size: int) -> SequenceModel:
    """The model, freshly initialised on the CPU."""
    return find(family.family).build(family, vocab_size)


def with_any_weights(family: FamilyConfig, vocab_size: int) -> SequenceModel:
    """The model with memory of its own and whatever stands there: enough to count bytes, and there at once."""
    with NoDraws():
        return with_weights(family, vocab_size)


class NoDraws(TorchDispatchMode):
    """Leaves tensors as they are where random numbers would be drawn into them."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, unless it draws."""
        return args[0] if func in DRAWS else func(*args, **(kwargs or {}))


def parts(family: FamilyConfig, vocab_size: int, length: int) -> tuple[list[FamilyConfig], int]:
    """The model of one part and that of two, and how many parts the whole has; ([the model], 1) where it has none."""
    depth = getattr(family, "num_layers", None) or 1
    whole = _size(family, vocab_size, length)
    for layers in _divisors(depth):
        cut = [dataclasses.replace(family, num_layers=n) for n in (layers, 2 * layers)]  # type: ignore[call-arg]
        one, two = (_size(family, vocab_size, length) for family in cut)
        if all(a + (depth // layers - 1) * (b - a) == c for a, b, c in zip(one, two, whole, strict=True)):
            return cut, depth // layers
    return [family], 1


def _divisors(depth: int) -> Iterator[int]:
    return (layers for layers in range(1, depth // 2 + 1) if depth % layers == 0)


def _size(family: FamilyConfig, vocab_size: int, length: int) -> tuple[int, int, int]:
    """Parameters, FLOPs of training, FLOPs of a step: what tells layers of different kinds apart."""
    baseline = without_weights(family, vocab_size)
    return family.parameters(vocab_size), baseline.flops(length, "train"), baseline.flops(length, "step")


def affordable_length(baseline: SequenceModel, length: int, flops: float) -> int:
    """`length` if a row of it trains for `flops`, else the longest multiple of three blocks that does, or the least."""
    if length <= 3 * BLOCK or baseline.flops(length, "train") <= flops:
        return length
    size = 3 * BLOCK
    while 2 * size <= length and baseline.flops(2 * size, "train") <= flops:
        size *= 2
    return size
