"""One token through transformers' Llama without what it prepares for many: masks, checks, hooks, copies of the cache.

At a few million parameters that preparation takes longer on a CPU than the model. The modules, the rotary angles and
the attention are transformers' own, so the numbers are; only the way from one to the next is shorter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from baselines._growing_cache import GrowingCache


def llama_step(model: PreTrainedModel, input_ids: Tensor, cache: GrowingCache) -> Tensor:
    """Logits [B, 1, V] of one more token, `input_ids` [B, 1], after those in `cache`; there is no gradient."""
    llama: Any = model
    body = llama.model
    hidden = body.embed_tokens(input_ids)
    position = torch.full((1, 1), cache.get_seq_length(), device=input_ids.device)
    cos, sin = (angles.unsqueeze(1) for angles in body.rotary_emb(hidden, position))
    half = sin.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    for block, layer in zip(body.layers, cache.layers, strict=True):
        hidden = hidden + _attend(block.self_attn, block.input_layernorm(hidden), cos, signed, layer)
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return llama.lm_head(body.norm(hidden))


def _attend(attention: Any, hidden: Tensor, cos: Tensor, signed_sin: Tensor, layer: Any) -> Tensor:
    """Attention of one token [B, 1, H] to all before it and itself -> [B, 1, H].

    A rotation, (a, b) -> (a cos - b sin, b cos + a sin) in halves a and b, is x cos + (b, a) (-sin, sin).
    """
    rows, width = len(hidden), attention.head_dim
    query, key, value = (
        project(hidden).view(rows, 1, -1, width).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = (x * cos + x.roll(width // 2, dims=-1) * signed_sin for x in (query, key))
    keys, values = layer.update(key, value)
    attention.kernel_path, grouped = "sdpa", attention.num_key_value_groups > 1
    found = F.scaled_dot_product_attention(query, keys, values, enable_gqa=grouped)
    return attention.o_proj(found.transpose(1, 2).reshape(rows, 1, -1))
