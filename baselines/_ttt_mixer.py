"""TTT's layer (arXiv 2407.04620) as a mixer of the shared backbone, from the library `ttt_impl`.

`backbone: mamba` in the options means the layer of that backbone, with one projection and two convolutions for
queries and keys, and a gate; the convolution before the layer is the block's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from baselines import _mixer
from ttt_impl.cache import LayerState
from ttt_impl.configuration import BACKBONES, BASE_LEARNING_RATE, INNER_TASKS, TOKEN_RATES, TTTConfig
from ttt_impl.inner_task import TASKS
from ttt_impl.layer import TTTLayer
from ttt_impl.pretrained import initialise
from ttt_impl.reading import read
from ttt_impl.state import FastWeights

CHOICES: dict[str, Collection[str]] = {
    "learner": BASE_LEARNING_RATE, "backbone": BACKBONES, "inner_task": INNER_TASKS, "token_rate": TOKEN_RATES,
}  # fmt: skip
"""What the options of words may be."""
AS_NAMED = (
    "mini_batch_size", "inner_task", "inner_norm", "inner_residual", "inner_bias", "learnable_w0", "learnable_eta",
    "token_rate",
)  # fmt: skip
"""Options that the library knows by the same name."""


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
            **(layer_arguments(options, hidden_size) | {"pre_conv": False}),
        )
        self.layer, self.options = TTTLayer(self.config), options

    def forward(self, x: Tensor, state: Any, keep: bool, wanted: int = 0) -> tuple[Tensor, Any]:
        """x [B, L, H]."""
        rows, before = len(x), 0 if state is None else state.tokens
        reading = read(self.config, x, [before] * rows, None, None)
        memory = LayerState() if keep else None
        if state is not None and memory is not None:
            fast = FastWeights(state.weights, state.rows).each(lambda part: part.flatten(0, 1))
            memory = LayerState(fast, dict(state.past))
        y = self.layer(x, reading, memory, wanted)
        self.kernel_path = self.layer.kernel_path
        if memory is None:
            return y, None
        assert memory.fast is not None
        after = memory.fast.each(lambda part: part.unflatten(0, (rows, -1)))
        return y, TTTState(after.weights, after.rows, memory.past, before + x.shape[1])

    def before_step(self, step: int, steps: int) -> None:
        """The inner rate warms up."""
        self.layer.inner_lr_scale = rate_scale(self.options, step, steps)

    @classmethod
    def count(cls, options: Any, hidden_size: int) -> int:
        """Square projections, W0, inner rates, the inner norm and the one after; convolutions and a bias each."""
        f, heads = options.head_dim, hidden_size // options.head_dim
        weights, biases = (f, 1) if options.learner == "linear" else (8 * f, 5)
        initial_weights = hidden_size * (weights + biases * options.inner_bias) * options.learnable_w0
        rates = heads * (hidden_size + 1) + options.mini_batch_size * (options.token_rate == "decay")
        norms = 2 * hidden_size * (1 + options.inner_norm)
        convolutions = 2 * hidden_size * (_mixer.CONV_KERNEL + 1) if options.backbone == "mamba" else 0
        square = projections(options) * hidden_size * hidden_size
        return square + initial_weights + rates * options.learnable_eta + norms + convolutions

    @classmethod
    def flops(cls, options: Any, hidden_size: int, length: int) -> int:
        """2 a weight and token of projections, rates and convolutions, and the inner loop of every head (`ttt.py`)."""
        f, heads, k = options.head_dim, hidden_size // options.head_dim, options.mini_batch_size
        weights = projections(options) * hidden_size * hidden_size + heads * hidden_size * options.learnable_eta
        weights += 2 * _mixer.CONV_KERNEL * hidden_size if options.backbone == "mamba" else 0
        return length * (2 * weights + heads * inner_flops(options.learner, f, k))

    @classmethod
    def output_flops(cls, options: Any, hidden_size: int) -> int:
        """The projection and, if there is one, the gate."""
        return 2 * hidden_size * hidden_size * (2 if options.backbone == "mamba" else 1)

    @torch.no_grad()
    def initialise(self) -> None:
        """As a TTT model does."""
        for module in self.layer.modules():
            if not isinstance(module, nn.Linear | nn.Conv1d):
                initialise(module, self.config.initializer_range)


def layer_arguments(options: Any, hidden_size: int) -> dict[str, Any]:
    """What the options say of a layer, as keyword arguments of `TTTConfig`."""
    return {
        "num_attention_heads": hidden_size // options.head_dim,
        "ttt_layer_type": options.learner,
        "ttt_base_lr": options.base_lr or BASE_LEARNING_RATE[options.learner],
        "conv_kernel": _mixer.CONV_KERNEL,
        **BACKBONES[options.backbone],
        **{name: getattr(options, name) for name in AS_NAMED},
    }


def rate_scale(options: Any, step: int, steps: int) -> float:
    """Share of its base that the inner rate has in optimiser step `step` of `steps`: linear from `base_lr_init` up.

    As in the JAX release, where TTT-MLP goes from 0.01 to 0.1 within the first tenth (paper, App. C).
    """
    if options.base_lr_init is None:
        return 1.0
    base = options.base_lr or BASE_LEARNING_RATE[options.learner]
    warmed = min(1.0, step / max(1.0, options.base_lr_warmup * steps))
    return (options.base_lr_init + warmed * (base - options.base_lr_init)) / base


def projections(options: Any) -> int:
    """Square projections of a layer: queries with keys or each alone with a gate, labels if learned, output."""
    return 4 if TASKS[options.inner_task].learned_label else 3


def inner_flops(learner: str, f: int, k: int) -> int:
    """The inner loop of one head of width f, per token of a mini-batch of k, in the dual form (appendix A).

    With h = 4 f:

        TTT-Linear   6 f^2 + 4 k f          k W, q W, the update k^T G; q k^T and its product with G
        TTT-MLP      14 f h + 4 k (f + h)   both layers' outputs for k and q, the way back, two updates; as above
    """
    hidden = 4 * f
    return {"linear": 6 * f * f + 4 * k * f, "mlp": 14 * f * hidden + 4 * k * (f + hidden)}[learner]
