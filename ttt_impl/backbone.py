"""The body of the language model: embeddings, blocks, a last norm (paper, Fig. 13; App. C).

    [h = h + conv(RMSNorm(h))]  ->  h = h + TTT(RMSNorm(h))  ->  h = h + SwiGLU(RMSNorm(h))

The bracket is the Mamba backbone's temporal convolution before the sequence layer (`pre_conv`).
"""

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ttt_impl.cache import LayerState
from ttt_impl.configuration import TTTConfig
from ttt_impl.convolution import causal_conv, depthwise_conv
from ttt_impl.cpu.pointwise import rms_norm, silu_product, usable
from ttt_impl.layer import TTTLayer
from ttt_impl.reading import Reading


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the division in float32 at least."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C]."""
        if usable(x, self.weight):
            return rms_norm(x, self.weight, self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class SwiGLU(nn.Module):
    """down( silu(gate x) * up x )."""

    def __init__(self, config: TTTConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn, self.is_silu = ACT2FN[config.hidden_act], config.hidden_act == "silu"

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C]."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.is_silu and usable(gate, up):
            return self.down_proj(silu_product(gate, up))
        return self.down_proj(self.act_fn(gate) * up)


class PreConv(nn.Module):
    """Temporal convolution before the sequence layer, on normed input."""

    def __init__(self, config: TTTConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.conv = depthwise_conv(config.hidden_size, config.conv_kernel)

    def forward(self, x: Tensor, reading: Reading, state: LayerState | None) -> Tensor:
        """x [B, L, C]."""
        x = reading.without_padding(self.norm(x))
        before = self.conv.weight.shape[-1] - 1
        past = None if state is None else state.recall("pre_conv", before)
        if state is not None:
            state.remember("pre_conv", x, before)
        return causal_conv(self.conv, x, past, reading.layout.age)


class Block(GradientCheckpointingLayer):
    """One residual block."""

    def __init__(self, config: TTTConfig) -> None:
        super().__init__()
        self.seq_modeling_block = TTTLayer(config)
        self.mlp = SwiGLU(config)
        self.conv = PreConv(config) if config.pre_conv else None
        self.seq_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, h: Tensor, reading: Reading, state: LayerState | None = None, wanted: int = 0) -> Tensor:
        """h [B, L, C] -> the last `wanted` of its tokens (0: all)."""
        if self.conv is not None:
            h = h + self.conv(h, reading, state)
        h = h[:, -wanted:] + self.seq_modeling_block(self.seq_norm(h), reading, state, wanted)
        return h + self.mlp(self.ffn_norm(h))
