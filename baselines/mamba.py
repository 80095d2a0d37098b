"""Mamba (Gu & Dao, arXiv 2312.00752): selective state spaces in transformers' format, see `_mamba_model`.

A block has no feed-forward layer, so at equal width it is half as large as a Transformer's and there are twice as
many. Its state, K inputs of the convolution and N numbers a channel, is the same after any number of tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from transformers import MambaConfig

from baselines import _mamba_mixer
from baselines._checkpoint import load_checkpoint
from baselines._mamba_model import MambaForCausalLM, MambaMixer
from baselines.config import FamilyConfig, SizeConfig, completed
from baselines.interface import Mode, SequenceModel, State


@dataclass
class Config(FamilyConfig):
    """Options of Mamba; its sizes are found from `size` where they are None."""

    family: str = "mamba"
    hidden_size: int | None = None
    num_layers: int | None = None
    state_size: int = 16
    expand: int = 2
    conv_kernel: int = 4
    time_step_rank: int | None = None
    """Rank of the projection to dt; None: a sixteenth of the width, rounded up."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "state_size", "expand", "conv_kernel", "time_step_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"mamba: {name}={value} must be at least 1")

    def candidates(self, size: SizeConfig) -> Iterator[Self]:
        """Depths a few layers around twice `size.num_layers`, widths within a quarter of `size.hidden_size`.

        Widths go in steps of 8; below 256 in finer ones, or small budgets would be missed.
        """
        spread = max(3, size.num_layers // 4)
        depths = range(max(1, 2 * size.num_layers - spread), 2 * size.num_layers + spread + 1)
        step = next(step for step in (8, 4, 2, 1) if size.hidden_size >= 32 * step or step == 1)
        widths = range(-(-3 * size.hidden_size // (4 * step)) * step, 5 * size.hidden_size // 4 + 1, step)
        for num_layers, hidden_size in itertools.product(depths, widths):
            yield completed(self, num_layers=num_layers, hidden_size=hidden_size)

    def exact(self, size: SizeConfig) -> Self:
        """The width of `size` and twice its layers, as the published models have it beside Transformers."""
        return completed(self, hidden_size=size.hidden_size, num_layers=2 * size.num_layers)

    def parameters(self, vocab_size: int) -> int:
        """Tied embedding, then per layer in, convolution, x, dt, A and D, out, norm; and the last norm."""
        assert self.hidden_size is not None
        assert self.num_layers is not None
        width = self.hidden_size
        return vocab_size * width + self.num_layers * (_mamba_mixer.Mamba.count(self, width) + width) + width


class Mamba(SequenceModel):
    """Mamba behind the common interface."""

    Config = Config
    Mixer = _mamba_mixer.Mamba
    model: MambaForCausalLM

    @classmethod
    def build(cls, config: Any, vocab_size: int) -> Self:
        """A freshly initialised float32 model on the CPU from a complete config."""
        model = MambaForCausalLM(
            MambaConfig(
                vocab_size=vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                state_size=config.state_size,
                expand=config.expand,
                conv_kernel=config.conv_kernel,
                time_step_rank=_mamba_mixer.rank_of(config, config.hidden_size),
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
        initialise(model)
        return cls(model)

    @classmethod
    def load(cls, config: FamilyConfig) -> Self:
        """The trained model in `config.checkpoint`, float32, in evaluation mode."""
        return cls(load_checkpoint(config, MambaForCausalLM))

    @property
    def kernel_path(self) -> str:
        """Which scan takes the model's weights, see `_mamba_mixer.path_for`."""
        return _mamba_mixer.path_for(self.model.lm_head.weight)

    def prefill(self, input_ids: Tensor, state: State | None = None, logits_to_keep: int = 1) -> tuple[Tensor, State]:
        """As in `SequenceModel`; transformers' Mamba calls its cache `cache_params`."""
        out = self.model(input_ids, cache_params=state, use_cache=True, logits_to_keep=logits_to_keep)
        return out.logits, out.cache_params

    def flops(self, length: int, mode: Mode) -> int:
        """Per token: 2 a weight of the projections and of the convolution, 7 D N in the scan, 2 H V in the head.

        The scan's 7 per state: dt A, exp, (dt x) B, 2 to update h, 2 for C · h. Norms, gates and other work on single
        channels are left out, below one percent. `train` is three forwards, the head at every token; `prefill`
        has head and the last out projection at its last token; `step` costs the same after any context.
        """
        config = self.model.config
        body = config.num_hidden_layers * _mamba_mixer.Mamba.flops(config, config.hidden_size, 1)
        head = 2 * config.hidden_size * config.vocab_size
        after = _mamba_mixer.Mamba.output_flops(config, config.hidden_size)
        return {
            "train": 3 * length * (body + head),
            "prefill": length * body - (length - 1) * after + head,
            "step": body + head,
        }[mode]


def initialise(model: MambaForCausalLM) -> None:
    """Initialise as the official mamba_ssm does, where transformers has its own way.

    Embeddings from N(0, 0.02); PyTorch's default for the in and x projections, the convolution and, divided by the
    square root of the depth, the out projection. transformers draws from N(0, 0.1). dt, A and D are alike in both.
    Not by the config's `rescale_prenorm_residual`, which makes transformers divide again whenever it loads the model.
    A_log, a matrix in shape alone, is kept from weight decay.
    """
    nn.init.normal_(model.backbone.embeddings.weight, std=0.02)
    for mixer in model.modules():
        if isinstance(mixer, MambaMixer):
            for part in (mixer.in_proj, mixer.x_proj, mixer.conv1d, mixer.out_proj):
                part.reset_parameters()
            mixer.out_proj.weight.data.div_(math.sqrt(model.config.num_hidden_layers))
            mixer.A_log._no_weight_decay = True  # type: ignore[attr-defined]
