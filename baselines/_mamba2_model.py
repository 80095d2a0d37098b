"""transformers' Mamba-2 with a mixer that stays float64 and goes on from any state by any number of tokens.

Parameters, config and checkpoints are those of transformers' `Mamba2ForCausalLM` (model_type "mamba2"): what one saves,
the other loads. The mixer is the equation of `_decayed_attention` with q = C, k = B, v = dt x and decay dt A; where
mamba-ssm is installed its kernel takes that over on CUDA. The cache keeps transformers' layouts.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import Mamba2Config
from transformers.cache_utils import Cache
from transformers.models.mamba2 import modeling_mamba2

from baselines._causal_conv import causal_conv
from baselines._decayed_attention import decayed_attention
from baselines._mamba_kernels import kernels_for, ssd_kernel_for
from baselines._precision import at_least_float32, widen_norms
from baselines._wanted import wanting


class Mamba2ForCausalLM(transformers.Mamba2ForCausalLM):
    """transformers' model with the mixers of this module; named alike, because it is its config's `architectures`."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__(config)
        widen_norms(self, modeling_mamba2.Mamba2RMSNorm)
        for block in self.backbone.layers:
            block.__class__ = Mamba2Block
            block.mixer.__class__ = Mamba2Mixer

    def forward(self, *args: Any, logits_to_keep: int = 0, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """As transformers', logits of at least float32: float64 is not rounded on the way."""
        kwargs = {"return_dict": True} | kwargs
        whole = labels is not None or kwargs.get("output_hidden_states")
        with wanting(self.backbone.layers[-1], 0 if whole else logits_to_keep):
            out = self.backbone(*args, **kwargs)
        logits = at_least_float32(
            self.lm_head(out.last_hidden_state[:, -logits_to_keep:].to(self.lm_head.weight.dtype))
        )
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return modeling_mamba2.Mamba2CausalLMOutput(
            loss=loss, logits=logits, cache_params=out.cache_params, hidden_states=out.hidden_states
        )


class Mamba2Block(modeling_mamba2.Mamba2Block):
    """Norm, mixer and a residual stream of at least float32 where the config asks for it."""

    wanted: int = 0

    def forward(
        self, hidden_states: Tensor, cache_params: Cache | None = None, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """[B, L, H] -> [B, wanted or L, H]."""
        residual = at_least_float32(hidden_states) if self.residual_in_fp32 else hidden_states
        mixed = self.norm(hidden_states.to(self.norm.weight.dtype))
        mixed = self.mixer(mixed, cache_params=cache_params, attention_mask=attention_mask, wanted=self.wanted)
        return residual[:, -self.wanted :] + mixed


class Mamba2Mixer(modeling_mamba2.Mamba2Mixer):
    """The layer of arXiv 2405.21060, figure 6: one projection, convolution, SSD, gated norm, projection."""

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Cache | None = None,
        attention_mask: Tensor | None = None,
        wanted: int = 0,
        **_: Any,
    ) -> Tensor:
        """[B, L, H] -> [B, L, H], going on from this layer's state in `cache_params` and leaving the new one there.

        If `wanted` is not 0, of the last `wanted` tokens alone. `attention_mask` [B, L] is zero where a row is padded
        on its left. No gradient flows through the cache.
        """
        layer: Any = None if cache_params is None else cache_params.layers[self.layer_idx]
        continues = layer is not None and layer.has_previous_state[0]
        length = hidden_states.shape[1]
        mask = None if attention_mask is None else attention_mask[:, -length:].unsqueeze(-1).to(hidden_states.dtype)
        projected = self.in_proj(hidden_states if mask is None else hidden_states * mask)
        gate, x, dt = projected.split([self.intermediate_size, self.conv_dim, self.num_heads], dim=-1)
        window = F.pad(x.transpose(1, 2), (self.conv_kernel_size, 0))
        if continues:
            window[..., : self.conv_kernel_size] = layer.conv_states[0]
        x = self._convolve(window[..., 1:])
        y, state = self._scan(x if mask is None else x * mask, dt, layer.recurrent_states[0] if continues else None)
        if layer is not None:
            layer.update_conv_state(window[..., -self.conv_kernel_size :].detach())
            layer.update_recurrent_state(state.detach())
        return self.out_proj(self._gated_norm(y[:, -wanted:], gate[:, -wanted:]).to(hidden_states.dtype))

    def _convolve(self, window: Tensor) -> Tensor:
        """[B, D, K - 1 + L] -> [B, L, D], SiLU included."""
        assert self.conv1d.bias is not None, "Mamba-2's convolution has a bias in every published checkpoint"
        weight, bias = at_least_float32(self.conv1d.weight), at_least_float32(self.conv1d.bias)
        kernels = kernels_for(window)
        if kernels is not None:
            out = kernels.causal_conv(window.contiguous(), weight.squeeze(1), bias, activation="silu")
            return out[..., self.conv_kernel_size - 1 :].transpose(1, 2)
        out = F.silu(causal_conv(at_least_float32(window).transpose(1, 2), weight, bias))
        return out.to(window.dtype)

    def _scan(self, x: Tensor, dt: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output [B, L, I] and last state [B, heads, P, N] of the convolved x, B, C in `x` [B, L, D]."""
        sizes = [self.intermediate_size, *[self.n_groups * self.ssm_state_size] * 2]
        x, B, C = x.split(sizes, dim=-1)
        x, B, C = x.unflatten(-1, (self.num_heads, -1)), *(v.unflatten(-1, (self.n_groups, -1)) for v in (B, C))
        A, limit = -at_least_float32(self.A_log).exp(), self.time_step_limit
        dt = F.softplus(at_least_float32(dt) + at_least_float32(self.dt_bias)).clamp(limit[0], limit[1])
        kernel = ssd_kernel_for(x)
        if kernel is not None:
            options = {"D": self.D, "initial_states": state, "return_final_states": True}
            y, state = kernel(x, dt, A, B, C, self.chunk_size, **options)
            return y.flatten(2), state
        wide = at_least_float32(x)
        y, state = decayed_attention(at_least_float32(C), at_least_float32(B), wide * dt.unsqueeze(-1), dt * A, state)
        return (y + at_least_float32(self.D).unsqueeze(-1) * wide).flatten(2), state

    def _gated_norm(self, y: Tensor, gate: Tensor) -> Tensor:
        """RMS norm within each group of y silu(gate), [B, L, I], as `MambaRMSNormGated`."""
        wide = at_least_float32(y) * F.silu(at_least_float32(gate))
        grouped = wide.unflatten(-1, (-1, self.norm.group_size))
        grouped = grouped * (grouped.square().mean(-1, keepdim=True) + self.norm.variance_epsilon).rsqrt()
        return self.norm.weight * grouped.flatten(-2).to(gate.dtype)
