"""Mamba-2 (Dao & Gu, arXiv 2405.21060): one decay a head, in transformers' format, see `_mamba2_model`.

Blocks without a feed-forward layer, about twice as many as a Transformer has. With one scalar decay a head the scan
becomes matrix products, so the state can be larger than Mamba's: N numbers for each channel of a head, and K inputs
of the convolution, after any number of tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from transformers import Mamba2Config

from baselines._checkpoint import load_checkpoint
from baselines._decayed_attention import CHUNK, attention_flops
from baselines._mamba2_model import Mamba2ForCausalLM, Mamba2Mixer
from baselines._mamba_kernels import ssd_kernel_for
from baselines.config import FamilyConfig, SizeConfig, completed
from baselines.interface import Mode, SequenceModel, State


@dataclass
class Config(FamilyConfig):
    """Options of Mamba-2; its sizes are found from `size` where they are None."""

    family: str = "mamba2"
    hidden_size: int | None = None
    num_layers: int | None = None
    head_dim: int | None = None
    state_size: int = 64
    expand: int = 2
    conv_kernel: int = 4
    num_groups: int = 1
    """Heads that share B and C are a group."""

    def __post_init__(self) -> None:
        names = ("hidden_size", "num_layers", "head_dim", "state_size", "expand", "conv_kernel", "num_groups")
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"mamba2: {name}={value} must be at least 1")
        if self.hidden_size and self.head_dim and self.inner % (self.head_dim * self.num_groups):
            raise ValueError(
                f"mamba2: expand × hidden_size = {self.inner} is not a multiple of"
                f" head_dim × num_groups = {self.head_dim * self.num_groups}"
            )

    @property
    def inner(self) -> int:
        """Channels inside a block."""
        return self.expand * (self.hidden_size or 0)

    def candidates(self, size: SizeConfig) -> Iterator[Self]:
        """Depths a few layers around twice `size.num_layers`, widths of whole heads around `size.hidden_size`.

        Below a width of 256 heads of half the width are tried too, or small budgets would be missed.
        """
        spread = max(3, size.num_layers // 4)
        depths = range(max(1, 2 * size.num_layers - spread), 2 * size.num_layers + spread + 1)
        for head_dim in [size.head_dim] if size.hidden_size >= 256 else [size.head_dim, -(-size.head_dim // 2)]:
            shape = completed(self, head_dim=head_dim)
            whole = (shape.head_dim or 1) * self.num_groups
            step = whole // math.gcd(whole, self.expand)
            widths = range(-(-3 * size.hidden_size // (4 * step)) * step, 5 * size.hidden_size // 4 + 1, step)
            for num_layers, hidden_size in itertools.product(depths, widths):
                yield completed(shape, num_layers=num_layers, hidden_size=hidden_size)

    def parameters(self, vocab_size: int) -> int:
        """Tied embedding; per layer in, convolution, dt bias, A and D, gated norm, out, norm; and the last norm."""
        assert self.hidden_size is not None
        assert self.num_layers is not None
        assert self.head_dim is not None
        width, inner, heads = self.hidden_size, self.inner, self.inner // self.head_dim
        convolved = inner + 2 * self.num_groups * self.state_size
        layer = width * (inner + convolved + heads) + convolved * (self.conv_kernel + 1) + 3 * heads
        layer += inner + inner * width + width
        return vocab_size * width + self.num_layers * layer + width


class Mamba2(SequenceModel):
    """Mamba-2 behind the common interface."""

    Config = Config
    model: Mamba2ForCausalLM

    @classmethod
    def build(cls, config: Any, vocab_size: int) -> Self:
        """A freshly initialised float32 model on the CPU from a complete config."""
        model = Mamba2ForCausalLM(
            Mamba2Config(
                vocab_size=vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                state_size=config.state_size,
                expand=config.expand,
                conv_kernel=config.conv_kernel,
                head_dim=config.head_dim,
                num_heads=config.inner // config.head_dim,
                n_groups=config.num_groups,
                chunk_size=CHUNK,
                tie_word_embeddings=True,
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
        return cls(load_checkpoint(config, Mamba2ForCausalLM))

    @property
    def kernel_path(self) -> str:
        """`mamba-ssm` where its CUDA kernel runs, else `torch-chunks`."""
        return "torch-chunks" if ssd_kernel_for(self.model.lm_head.weight) is None else "mamba-ssm"

    def prefill(self, input_ids: Tensor, state: State | None = None, logits_to_keep: int = 1) -> tuple[Tensor, State]:
        """As in `SequenceModel`; transformers' Mamba-2 calls its cache `cache_params`."""
        out = self.model(input_ids, cache_params=state, use_cache=True, logits_to_keep=logits_to_keep)
        return out.logits, out.cache_params

    def flops(self, length: int, mode: Mode) -> int:
        """Per token 2 a weight of the projections and the convolution, 2 H V in the head; SSD as `attention_flops`.

        `train` is three forwards, the head at every token; `prefill` has head and the last out projection at its last
        token; `step` costs the same after any context: a chunk of one token.
        """
        config = self.model.config
        width, inner = config.hidden_size, config.num_heads * config.head_dim
        convolved = inner + 2 * config.n_groups * config.state_size
        weights = width * (2 * inner + convolved + config.num_heads) + config.conv_kernel * convolved
        heads = (config.n_groups, config.num_heads, config.head_dim, config.state_size)

        def body(tokens: int) -> int:
            return config.num_hidden_layers * (2 * tokens * weights + attention_flops(tokens, *heads))

        head = 2 * width * config.vocab_size
        return {
            "train": 3 * (body(length) + length * head),
            "prefill": body(length) - (length - 1) * 2 * width * inner + head,
            "step": body(1) + head,
        }[mode]


def initialise(model: Mamba2ForCausalLM) -> None:
    """Initialise as the official mamba_ssm does, where transformers has its own way.

    Embeddings from N(0, 0.02); A uniform in [1, 16]; PyTorch's default for projections and convolution, the out
    projection divided by the square root of the depth. dt and D are alike in both.
    """
    nn.init.normal_(model.backbone.embeddings.weight, std=0.02)
    for mixer in model.modules():
        if isinstance(mixer, Mamba2Mixer):
            for part in (mixer.in_proj, mixer.out_proj, mixer.conv1d):
                part.reset_parameters()
            mixer.out_proj.weight.data.div_(math.sqrt(model.config.num_hidden_layers))
            mixer.A_log.data.uniform_(1, 16).log_()
