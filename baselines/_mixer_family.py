"""A family whose model is the shared backbone with its own mixer: all that is left to say is which one."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, ClassVar, Self

from baselines import _mixer
from baselines._backbone import BackboneConfig, BackboneForCausalLM
from baselines._checkpoint import load_checkpoint
from baselines.config import BlockConfig, FamilyConfig
from baselines.interface import Mode, SequenceModel
from baselines.registry import find

_SIZES = {field.name for field in dataclasses.fields(BlockConfig)} - {"family"}
"""What a checkpoint says itself."""


class MixerFamily(SequenceModel):
    """The shared backbone behind the common interface; a family names its `Config` and its `Mixer`."""

    Mixer: ClassVar[type[_mixer.Mixer]]
    model: BackboneForCausalLM

    def __init__(self, model: BackboneForCausalLM) -> None:
        super().__init__(model)
        self.continues = all(mixer.continues for mixer in self.mixers)
        self.exact_causality = all(mixer.exact_causality for mixer in self.mixers)

    @classmethod
    def build(cls, config: Any, vocab_size: int) -> Self:
        """A freshly initialised float32 model on the CPU from a complete config."""
        backbone = BackboneConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            backbone=config.backbone,
            layers=[dataclasses.asdict(options) for options in config.layers()],
        )
        return cls(BackboneForCausalLM(backbone))

    @classmethod
    def load(cls, config: FamilyConfig) -> Self:
        """The model in `config.checkpoint`, float32, in evaluation mode; its layers must be as `config` says."""
        assert isinstance(config, _mixer.MixerConfig)
        model = load_checkpoint(config, BackboneForCausalLM)
        for found, options in zip(model.config.layers, itertools.cycle(config.pattern()), strict=False):
            for name, wanted in dataclasses.asdict(options).items():
                if name not in _SIZES and found.get(name) != wanted:
                    raise ValueError(
                        f"checkpoint {config.checkpoint} holds a layer with {name}={found.get(name)!r},"
                        f" {config.family} is to have {wanted!r}"
                    )
        return cls(model)

    @property
    def mixers(self) -> list[_mixer.Mixer]:
        """The mixer of each layer."""
        return [module for module in self.model.modules() if isinstance(module, _mixer.Mixer)]

    @property
    def kernel_path(self) -> str:
        """What the mixers' last forward ran on, each path once."""
        return "+".join(dict.fromkeys(mixer.kernel_path for mixer in self.mixers))

    def before_step(self, step: int, steps: int) -> None:
        """Every mixer changes what it wants to."""
        for mixer in self.mixers:
            mixer.before_step(step, steps)

    def flops(self, length: int, mode: Mode) -> int:
        """Per token 2 a weight of SwiGLU, head and, in the mamba backbone, convolution, gate and projection; mixers.

        Norms, activations and residuals are left out, below one percent. `train` is three forwards, the head at
        every token; `prefill` has head and what follows the last mixing at its last token; a `step` follows `length`
        tokens.
        """
        config = self.model.config
        width, mixers, output = config.hidden_size, 0, 0
        for options in config.layers:
            mixer, typed = _mixer.mixer_of(options["family"]), find(options["family"]).Config(**options)
            count = mixer.step_flops if mode == "step" else mixer.flops
            mixers += count(typed, width, length)
            output = mixer.output_flops(typed, width)
        gated = config.backbone == "mamba"
        after = 2 * width * (3 * config.intermediate_size + 2 * width * gated)
        block = len(config.layers) * (after + 2 * width * _mixer.CONV_KERNEL * gated)
        head = 2 * width * config.vocab_size
        return {
            "train": 3 * (mixers + length * (block + head)),
            "prefill": mixers + length * block - (length - 1) * (output + after) + head,
            "step": mixers + block + head,
        }[mode]
