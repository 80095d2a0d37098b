"""Mamba's mixer (arXiv 2312.00752) in the shared backbone: convolution, selection, scan and gate of `_mamba_model`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import MambaConfig
from transformers.cache_utils import LinearAttentionLayer

from baselines import _fused_scan, _mixer
from baselines._mamba_kernels import kernels_for
from baselines._mamba_model import MambaMixer
from baselines._series import fits


class Mamba(_mixer.Mixer):
    """The selective state space layer, twice as wide inside."""

    def __init__(self, options: Any, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        config = MambaConfig(
            hidden_size=hidden_size,
            num_hidden_layers=1,
            state_size=options.state_size,
            expand=options.expand,
            conv_kernel=options.conv_kernel,
            time_step_rank=rank_of(options, hidden_size),
        )
        self.layer = MambaMixer(config, layer_idx=0)
        self.layer.A_log._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor, state: Any, keep: bool, wanted: int = 0) -> tuple[Tensor, Any]:
        """x [B, L, H]; the state is the last inputs of the convolution [B, D, K] and the numbers [B, D, N]."""
        self.kernel_path = path_for(x)
        if not keep:
            return self.layer(x, wanted=wanted), None
        memory = LinearAttentionLayer()
        if state is not None:
            memory.update_conv_state(state[0])
            memory.update_recurrent_state(state[1])
        cache: Any = _OneLayer(memory)
        y = self.layer(x, cache_params=cache, wanted=wanted)
        return y, (memory.conv_states[0], memory.recurrent_states[0])

    @classmethod
    def count(cls, options: Any, hidden_size: int) -> int:
        """Projections in, to dt, B and C, and out; convolution, dt's bias, A and D."""
        inner, rank = options.expand * hidden_size, rank_of(options, hidden_size)
        projections = inner * (3 * hidden_size + rank + 2 * options.state_size) + (rank + 1) * inner
        return projections + inner * (options.conv_kernel + 1) + inner * (options.state_size + 1)

    @classmethod
    def flops(cls, options: Any, hidden_size: int, length: int) -> int:
        """2 a weight and token of projections and convolution, 7 D N in the scan (`mamba.py`)."""
        inner, states, rank = options.expand * hidden_size, options.state_size, rank_of(options, hidden_size)
        weights = inner * (3 * hidden_size + 2 * rank + 2 * states + options.conv_kernel)
        return length * (2 * weights + 7 * inner * states)

    @classmethod
    def output_flops(cls, options: Any, hidden_size: int) -> int:
        """The projection from all channels."""
        return 2 * options.expand * hidden_size * hidden_size

    def initialise(self) -> None:
        """dt, A and D as transformers does; the rest as everywhere in the backbone."""
        self.layer.init_mamba_weights()


def path_for(x: Tensor) -> str:
    """`mamba-ssm` where its CUDA kernels run, `fused-cpu` where the C++ of this floor does, else `torch-scan`."""
    if kernels_for(x) is not None:
        return "mamba-ssm"
    return "fused-cpu" if fits(x, _fused_scan.SOURCE) else "torch-scan"


class _OneLayer:
    """What the mixer asks of transformers' cache."""

    def __init__(self, layer: LinearAttentionLayer) -> None:
        self.layers = [layer]


def rank_of(options: Any, hidden_size: int) -> int:
    """Rank of the projection to dt: a sixteenth of the width, rounded up, unless it is said."""
    return options.time_step_rank or -(-hidden_size // 16)
