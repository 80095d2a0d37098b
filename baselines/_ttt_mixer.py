"""TTT's layer (arXiv 2407.04620) as a mixer of the shared backbone, from the library `ttt_impl`.

`backbone: mamba` in the options means the layer of that backbone, with one projection and two convolutions for
queries and keys, and a gate; the convolution before the layer is the block's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from baselines import _mixer
from ttt_impl.cache import LayerState
from ttt_impl.configuration import BACKBONES, BASE_LEARNING_RATE, TTTConfig
from ttt_impl.layer import TTTLayer
from ttt_impl.pretrained import initialise
from ttt_impl.reading import read
from ttt_impl.state import FastWeights


@dataclass
class TTTState:
    """Fast weights, rows of the open mini-batch and convolutions' inputs, all [B, ...]."""

    weights: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]
    past: dict[str, Tensor]
    tokens: int


class TTTMixer(_mixer.Mixer):
    """TTT-Linear or TTT-MLP with its projections."""

    kernel_path = "scan"

    def __init__(self, options: Any, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        self.config = TTTConfig(
            hidden_size=hidden_size,
            num_hidden_layers=1,
            num_attention_heads=hidden_size // options.head_dim,
            ttt_layer_type=options.learner,
            ttt_base_lr=options.base_lr or BASE_LEARNING_RATE[options.learner],
            mini_batch_size=options.mini_batch_size,
            conv_kernel=_mixer.CONV_KERNEL,
            **(BACKBONES[options.backbone] | {"pre_conv": False}),  # type: ignore[arg-type]
        )
        self.layer = TTTLayer(self.config)

    def forward(self, x: Tensor, state: Any, keep: bool) -> tuple[Tensor, Any]:
        """x [B, L, H]."""
        rows, before = len(x), 0 if state is None else state.tokens
        reading = read(self.config, x, [before] * rows, None, None)
        memory = LayerState() if keep else None
        if state is not None and memory is not None:
            fast = FastWeights(state.weights, state.rows).each(lambda part: part.flatten(0, 1))
            memory = LayerState(fast, dict(state.past))
        y = self.layer(x, reading, memory)
        self.kernel_path = self.layer.kernel_path
        if memory is None:
            return y, None
        assert memory.fast is not None
        after = memory.fast.each(lambda part: part.unflatten(0, (rows, -1)))
        return y, TTTState(after.weights, after.rows, memory.past, before + x.shape[1])

    @classmethod
    def count(cls, options: Any, hidden_size: int) -> int:
        """Four square projections, W0, inner rates, the inner norm and the one after; convolutions and a bias each."""
        f, heads = options.head_dim, hidden_size // options.head_dim
        initial_weights = hidden_size * (f + 1 if options.learner == "linear" else 8 * f + 5)
        rates = heads * (hidden_size + 1) + options.mini_batch_size
        convolutions = 2 * hidden_size * (_mixer.CONV_KERNEL + 1) if options.backbone == "mamba" else 0
        return 4 * hidden_size * hidden_size + initial_weights + rates + 4 * hidden_size + convolutions

    @classmethod
    def flops(cls, options: Any, hidden_size: int, length: int) -> int:
        """2 a weight and token of projections, rates and convolutions, and the inner loop of every head (`ttt.py`)."""
        f, heads, k = options.head_dim, hidden_size // options.head_dim, options.mini_batch_size
        weights = 4 * hidden_size * hidden_size + heads * hidden_size
        weights += 2 * _mixer.CONV_KERNEL * hidden_size if options.backbone == "mamba" else 0
        return length * (2 * weights + heads * inner_flops(options.learner, f, k))

    @torch.no_grad()
    def initialise(self) -> None:
        """As a TTT model does."""
        for module in self.layer.modules():
            if not isinstance(module, nn.Linear | nn.Conv1d):
                initialise(module, self.config.initializer_range)


def inner_flops(learner: str, f: int, k: int) -> int:
    """The inner loop of one head of width f, per token of a mini-batch of k, in the dual form (appendix A).

    With h = 4 f:

        TTT-Linear   6 f^2 + 4 k f          k W, q W, the update k^T G; q k^T and its product with G
        TTT-MLP      14 f h + 4 k (f + h)   both layers' outputs for k and q, the way back, two updates; as above
    """
    hidden = 4 * f
    return {"linear": 6 * f * f + 4 * k * f, "mlp": 14 * f * hidden + 4 * k * (f + hidden)}[learner]
