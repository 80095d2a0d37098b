"""Llama's attention through transformers, with the operators of the CPU where they fit.

transformers lets an attention function and a mask function be registered under a name; a model whose config says that
name calls both. Its own for PyTorch's attention hands out no mask for a whole causal sequence, but a full matrix
for tokens that follow a cache; this one knows that case, too. Padding and all else that needs a mask goes the old way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention

from baselines._causal_attention import attention_path, causal_attention, causal_mask
from baselines._rotary import turned

NAME = "causal"
"""Of the functions below in a config's `_attn_implementation`, which no checkpoint keeps."""


class CausalAttention(LlamaAttention):
    """transformers' layer, parameters and all, with rotations and attention as operators."""

    kernel_path = "sdpa"

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> Any:
        """As in transformers: hidden_states [B, L, H]; under another name than `NAME` it is transformers' own."""
        if self.config._attn_implementation != NAME:
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **others)
        q, k, v = (
            project(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = (angles[..., : self.head_dim // 2].unsqueeze(1) for angles in position_embeddings)
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        dropout = float(self.attention_dropout or 0) if self.training else 0.0
        y, _ = attend(self, q, k, v, attention_mask, dropout, self.scaling)
        return self.o_proj(y.flatten(2)), None


def use_operators(model: PreTrainedModel) -> None:
    """Let the attention of a Llama that would run PyTorch's run ours where it can."""
    for module in model.modules():
        if type(module) is LlamaAttention:
            module.__class__ = CausalAttention
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """y [B, L, heads, f] of query, key and value [B, heads, tokens, f]; without a mask the queries are the last."""
    plain = attention_mask is None and not dropout
    module.kernel_path = attention_path(query, key, value) if plain else "sdpa"
    if module.kernel_path == "fused-cpu":
        return causal_attention(query, key, value, scaling).transpose(1, 2), None
    mask = causal_mask(query, key) if attention_mask is None else attention_mask
    return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **others)


def mask_for(
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **others: Any,
) -> Tensor | None:
    """None where the queries are the last of the keys and no key is padding, else transformers' mask."""
    skips = allow_is_causal_skip and others.get("local_size") is None
    last = not torch.compiler.is_compiling() and kv_length == q_offset + q_length
    if skips and last and (attention_mask is None or bool(attention_mask.all())):
        return None
    skips = skips and q_length in (1, kv_length)
    given: dict[str, Any] = {"q_offset": q_offset, "attention_mask": attention_mask, "allow_is_causal_skip": skips}
    return sdpa_mask(q_length=q_length, kv_length=kv_length, **given, **others)


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, mask_for)
