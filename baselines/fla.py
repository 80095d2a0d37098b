"""Any causal language model of flash-linear-attention, by its name there: gla, delta_net, retnet, rwkv7, hgrn2 …

The library (github.com/fla-org/flash-linear-attention) has each architecture of linear attention with Triton kernels
and a `transformers` model around it; it runs on CUDA alone. Where it cannot run, a comparison has a row that says so.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from baselines.config import BlockConfig, FamilyConfig, Unsupported
from baselines.interface import Mode, SequenceModel


@dataclass
class Config(BlockConfig):
    """Which architecture; sizes are taken from `size` where they are None."""

    family: str = "fla"
    architecture: str = "gla"
    """The `model_type` of the model in flash-linear-attention."""
    options: dict[str, Any] = field(default_factory=dict)
    """What else its config there is to be given."""

    def parameters(self, vocab_size: int) -> int:
        """Counted on two models without memory, for parameters are linear in the width of the feed-forward layer."""
        require()
        assert self.intermediate_size is not None
        shape = json.dumps(dataclasses.asdict(dataclasses.replace(self, intermediate_size=None)), sort_keys=True)
        fixed, slope = _line(shape, vocab_size)
        return fixed + slope * self.intermediate_size


class Fla(SequenceModel):
    """A model of flash-linear-attention behind the common interface."""

    Config = Config
    kernel_path = "fla"

    @classmethod
    def build(cls, config: Any, vocab_size: int) -> Self:
        """A freshly initialised float32 model on the CPU, to be moved to a GPU; Unsupported where there is none."""
        return cls(AutoModelForCausalLM.from_config(library_config(config, vocab_size)))

    @classmethod
    def load(cls, config: FamilyConfig) -> Self:
        """The trained model in `config.checkpoint`, float32, in evaluation mode."""
        require()
        return super().load(config)

    def flops(self, length: int, mode: Mode) -> int:
        """2 a weight of every matrix, the head's where it is computed: what the recurrences cost is not counted.

        `train` is three forwards, the head at every token; `prefill` has one head; a `step` is one token of each.
        """
        head = self.model.get_output_embeddings().weight
        modules = (module for module in self.model.modules() if not isinstance(module, nn.Embedding))
        weights = (weight for module in modules for weight in module.parameters(recurse=False))
        body, last = 2 * sum(w.numel() for w in weights if w.ndim == 2 and w is not head), 2 * head.numel()
        return {"train": 3 * length * (body + last), "prefill": length * body + last, "step": body + last}[mode]


def require() -> None:
    """Import the library; Unsupported, with the reason, where it cannot run."""
    if not torch.cuda.is_available():
        raise Unsupported("flash-linear-attention runs on CUDA alone, and torch finds no CUDA device here")
    try:
        import fla  # noqa: F401
    except ImportError:
        raise Unsupported("flash-linear-attention is not installed: pip install 'ttt-bench[fla]'") from None


def library_config(config: Config, vocab_size: int) -> PreTrainedConfig:
    """The library's own config; ValueError if it knows no such architecture."""
    require()
    assert config.hidden_size is not None
    assert config.head_dim is not None
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_heads": config.hidden_size // config.head_dim,
        "intermediate_size": config.intermediate_size,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    try:
        return AutoConfig.for_model(config.architecture, **(sizes | config.options))
    except ValueError:
        raise ValueError(
            f"fla: architecture={config.architecture!r}: flash-linear-attention has no such model"
        ) from None


@functools.cache
def _line(shape: str, vocab_size: int) -> tuple[int, int]:
    """Parameters of a config without feed-forward layer, and how many each unit of its width adds."""
    counts = []
    for width in (64, 128):
        config = library_config(Config(**(json.loads(shape) | {"intermediate_size": width})), vocab_size)
        with torch.device("meta"):
            counts.append(AutoModelForCausalLM.from_config(config).num_parameters())
    slope = (counts[1] - counts[0]) // 64
    return counts[0] - 64 * slope, slope
