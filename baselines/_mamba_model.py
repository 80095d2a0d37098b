"""transformers' Mamba with a mixer that trains quickly on a CPU and continues from any state exactly.

Parameters, config and checkpoints are those of transformers' `MambaForCausalLM` (model_type "mamba"): what one
saves, the other loads. Different are the scan (transformers' backward is quadratic in the length, see
`_selective_scan`), the meaning of a state (transformers' scan forgets it when more than one token follows), and
float64, which stays float64. The mixer works time first, as the scan does; the cache keeps transformers' layouts,
[B, D, K] and [B, D, N], so `generate`, beam search included, works on it.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import MambaConfig
from transformers.cache_utils import Cache
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba.modeling_mamba import MambaCausalLMOutput

from baselines import _fused_scan, _mamba_step
from baselines._causal_conv import causal_conv
from baselines._mamba_kernels import kernels_for
from baselines._precision import at_least_float32, widen_norms
from baselines._selective_scan import selective_scan, selective_step
from baselines._series import fits
from baselines._wanted import wanting
from ttt_impl.cpu.convolve import SOURCE as CONVOLVE
from ttt_impl.cpu.convolve import convolve
from ttt_impl.cpu.linear import linear


class MambaForCausalLM(transformers.MambaForCausalLM):
    """transformers' model with the mixers of this module; named alike, because it is its config's `architectures`."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__(config)
        widen_norms(self, modeling_mamba.MambaRMSNorm)
        for block in self.backbone.layers:
            block.__class__ = MambaBlock
            block.mixer.__class__ = MambaMixer

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> MambaCausalLMOutput:
        """Logits [B, L, V] of `input_ids` [B, L], or of its last `logits_to_keep` tokens, with the cache after them."""
        plain = labels is None and not torch.is_grad_enabled() and not kwargs.get("output_hidden_states")
        if plain and input_ids is not None and input_ids.shape[1] == 1 and _has_read(cache_params):
            return MambaCausalLMOutput(logits=self.step(input_ids, cache_params), cache_params=cache_params)
        all_states = kwargs.get("output_hidden_states")
        with wanting(self.backbone.layers[-1], 0 if all_states or labels is not None else logits_to_keep):
            out = self.backbone(
                input_ids,
                inputs_embeds=inputs_embeds,
                cache_params=cache_params,
                use_cache=use_cache,
                attention_mask=attention_mask,
                output_hidden_states=all_states,
                return_dict=True,
            )
        hidden = out.last_hidden_state[:, -logits_to_keep:].to(self.lm_head.weight.dtype)
        logits = at_least_float32(self.lm_head(hidden))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MambaCausalLMOutput(
            loss=loss, logits=logits, cache_params=out.cache_params, hidden_states=out.hidden_states
        )

    def step(self, input_ids: Tensor, cache: Any) -> Tensor:
        """Logits [B, 1, V] of one more token, `input_ids` [B, 1], without what transformers prepares for many.

        Every layer's state in `cache` moves on in place; there is no gradient.
        """
        hidden = self.backbone.embeddings(input_ids[:, 0])
        blocks: Any = self.backbone.layers
        for block, layer in zip(blocks, cache.layers, strict=True):
            hidden = block.step(hidden, layer)
        hidden = self.backbone.norm_f(hidden).to(self.lm_head.weight.dtype)
        return at_least_float32(self.lm_head(hidden)).unsqueeze(1)


def _has_read(cache: Any) -> bool:
    return cache is not None and cache.layers[0].has_previous_state[0]


class MambaBlock(modeling_mamba.MambaBlock):
    """Norm, mixer and a residual stream of at least float32 where the config asks for it."""

    mixer: MambaMixer
    wanted: int = 0

    def forward(
        self, hidden_states: Tensor, cache_params: Cache | None = None, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """[B, L, H] -> [B, wanted or L, H]."""
        residual = at_least_float32(hidden_states) if self.residual_in_fp32 else hidden_states
        mixed = self.norm(hidden_states.to(self.norm.weight.dtype))
        mixed = self.mixer(mixed, cache_params=cache_params, attention_mask=attention_mask, wanted=self.wanted)
        return residual[:, -self.wanted :] + mixed

    def step(self, hidden: Tensor, layer: Any) -> Tensor:
        """One token [B, H] -> [B, H]; its state, `layer` of the cache, moves on."""
        residual = at_least_float32(hidden) if self.residual_in_fp32 else hidden
        mixed = self.norm(hidden.to(self.norm.weight.dtype))
        return residual + self.mixer.step(mixed, layer.conv_states[0], layer.recurrent_states[0])


class MambaMixer(modeling_mamba.MambaMixer):
    """The selective state space layer (arXiv 2312.00752, figure 3): convolution, selection, scan, gate."""

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
        length, kernel = hidden_states.shape[1], self.conv_kernel_size
        mask = None if attention_mask is None else attention_mask[:, -length:, None].to(hidden_states.dtype)
        x, z = self._project(hidden_states if mask is None else hidden_states * mask)
        past = x.new_zeros(len(x), kernel - 1, x.shape[-1])
        if continues:
            past = layer.conv_states[0][..., 1:].transpose(1, 2).to(x.dtype, copy=True)
        conv = self._convolve(past, x)
        inputs = conv if mask is None else conv * mask
        y, state = self._scan(inputs, z, layer.recurrent_states[0] if continues else None)
        if layer is not None:
            window = torch.cat([past, x[:, -kernel:]], dim=1)[:, -kernel:]
            layer.update_conv_state(window.transpose(1, 2).detach())
            layer.update_recurrent_state(state.detach())
        return self.out_proj(y[:, -wanted:].to(hidden_states.dtype))

    def step(self, hidden: Tensor, conv_state: Tensor, state: Tensor) -> Tensor:
        """One token [B, H] -> [B, H]; moves `conv_state` [B, D, K] and `state` [B, D, N] on in place."""
        xz = self.in_proj(hidden)
        selection = self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias, self.A_log, self.D
        tensors = xz, conv_state, state, *self._convolution(), *selection
        if fits(xz, _mamba_step.SOURCE) and all(v.dtype == torch.float32 and v.is_contiguous() for v in tensors):
            return self.out_proj(_mamba_step.mamba_step(*tensors))
        x, z = xz.chunk(2, dim=-1)
        conv_state.copy_(torch.cat([conv_state[..., 1:], x.unsqueeze(-1)], dim=-1))
        weight, bias = self._convolution()
        x = F.silu((conv_state * weight.squeeze(1)).sum(-1) + bias).to(hidden.dtype)
        dt, B, C = self._select(x)
        kernels = kernels_for(x)
        if kernels is not None:
            dt, bias = F.linear(dt, self.dt_proj.weight), self.dt_proj.bias.float()
            y = kernels.state_update(state, x, dt, self._A(), B, C, self.D, z=z, dt_bias=bias, dt_softplus=True)
        else:
            dt = F.softplus(_time_step(dt, self.dt_proj.weight) + at_least_float32(self.dt_proj.bias))
            inputs = x, dt, self._A(), B, C, self.D
            y = selective_step(state, *(at_least_float32(v) for v in inputs)) * F.silu(z)
        return self.out_proj(y.to(hidden.dtype))

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs x and the gate z, [B, L, D] each; on a CPU two products, whose gradients need no joining copy."""
        if not fits(hidden, _fused_scan.SOURCE):
            return self.in_proj(hidden).chunk(2, dim=-1)
        weights = self.in_proj.weight.chunk(2)
        biases = (None, None) if self.in_proj.bias is None else self.in_proj.bias.chunk(2)
        x, z = (linear(hidden, weight, bias) for weight, bias in zip(weights, biases, strict=True))
        return x, z

    def _convolve(self, past: Tensor, x: Tensor) -> Tensor:
        """[B, L, D] after `past` [B, K - 1, D] -> [B, L, D], SiLU included."""
        weight, bias = self._convolution()
        kernels = kernels_for(x)
        if kernels is not None:
            window = torch.cat([past, x], dim=1).transpose(1, 2).contiguous()
            out = kernels.causal_conv(window, weight.squeeze(1), bias, activation="silu")
            return out[..., self.conv_kernel_size - 1 :].transpose(1, 2)
        if fits(x, CONVOLVE):
            return convolve(at_least_float32(x), at_least_float32(past), weight, bias, silu=True).to(x.dtype)
        return F.silu(causal_conv(torch.cat([past, x], dim=1), weight, bias)).to(x.dtype)

    def _scan(self, x: Tensor, z: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gated output [B, L, D] and last state [B, D, N]; mamba-ssm's kernel cannot start from a state."""
        kernels = kernels_for(x) if state is None else None
        if fits(x, _fused_scan.SOURCE):
            low, B, C, weight = self._select_in_sixteens(x)
            return _fused_scan.fused_scan(
                x, _time_step(low, weight), self.dt_proj.bias, self._A(), B, C, self.D, z, state
            )
        low, B, C = self._select(x)
        if kernels is None:
            dt = F.softplus(_time_step(low, self.dt_proj.weight) + at_least_float32(self.dt_proj.bias))
            return selective_scan(x, dt, self._A(), B, C, self.D, z, state)
        dt, bias = F.linear(low, self.dt_proj.weight), self.dt_proj.bias.float()
        x, dt, B, C, z = (v.transpose(1, 2) for v in (x, dt, B, C, z))
        y, state = kernels.selective_scan(x, dt, self._A(), B, C, self.D.float(), z, bias, True, return_last_state=True)
        return y.transpose(1, 2), state

    def _convolution(self) -> tuple[Tensor, Tensor]:
        """Weight [D, 1, K] and bias [D]."""
        assert self.conv1d.bias is not None, "Mamba's convolution has a bias in every published checkpoint"
        return at_least_float32(self.conv1d.weight), at_least_float32(self.conv1d.bias)

    def _select(self, x: Tensor) -> tuple[Tensor, ...]:
        """What depends on the input: dt of low rank [..., R], B and C [..., N]."""
        return self.x_proj(x).split([self.time_step_rank, self.ssm_state_size, self.ssm_state_size], dim=-1)

    def _select_in_sixteens(self, x: Tensor) -> tuple[Tensor, ...]:
        """As `_select`, then the weight [D, R] of the time step; R a multiple of 16, what is added is zero.

        The backward of a product over 11 numbers takes a CPU six times as long as of one over 16.
        """
        rank, both = self.time_step_rank, 2 * self.ssm_state_size
        spare = -rank % 16
        low, rest = self.x_proj.weight.split([rank, both])
        selected = F.linear(x, torch.cat([low, low.new_zeros(spare, low.shape[1]), rest]))
        parts = selected.split([rank + spare, self.ssm_state_size, self.ssm_state_size], dim=-1)
        return *parts, F.pad(self.dt_proj.weight, (0, spare))

    def _A(self) -> Tensor:
        """A [D, N] < 0."""
        return -torch.exp(at_least_float32(self.A_log))


def _time_step(low: Tensor, weight: Tensor) -> Tensor:
    """dt [..., D] of its low rank form [..., R], before its bias and softplus."""
    with torch.autocast(low.device.type, enabled=False):
        return F.linear(at_least_float32(low), at_least_float32(weight))
