"""Softmax attention as a mixer of the shared backbone: Llama's layer, rotary positions and all (arXiv 2302.13971).

Its state is every key and value so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from baselines import _mixer
from baselines._causal_attention import attention_path, causal_attention
from baselines._rotary import rotary


class Attention(_mixer.Mixer):
    """Causal softmax attention; query heads share the keys and values of `num_kv_heads`."""

    kernel_path = "sdpa"

    def __init__(self, options: Any, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        self.width, self.theta, shared = options.head_dim, options.rope_theta, options.kv_heads * options.head_dim
        self.q_proj, self.o_proj = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(hidden_size, shared, bias=False) for _ in range(2))

    def forward(self, x: Tensor, state: Any, keep: bool, wanted: int = 0) -> tuple[Tensor, Any]:
        """x [B, L, H]; the state is keys (turned) and values, both [B, heads, tokens, f]."""
        length, seen = x.shape[1], 0 if state is None else state[0].shape[2]
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.width)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        positions = torch.arange(seen, seen + length, device=x.device)
        q, k = (rotary(part, positions, self.theta) for part in (q, k))
        if state is not None:
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        self.kernel_path = attention_path(q, k, v)
        y = causal_attention(q, k, v)
        return self.o_proj(y[:, :, -wanted:].transpose(1, 2).flatten(2)), (k, v) if keep else None

    @classmethod
    def count(cls, options: Any, hidden_size: int) -> int:
        """Projections of queries and output, and of keys and values."""
        return 2 * hidden_size * (hidden_size + options.kv_heads * options.head_dim)

    @classmethod
    def flops(cls, options: Any, hidden_size: int, length: int) -> int:
        """2 a weight and token; 4 H a pair of query and key, of which causality leaves L (L + 1) / 2."""
        return 2 * length * cls.count(options, hidden_size) + 2 * length * (length + 1) * hidden_size

    @classmethod
    def step_flops(cls, options: Any, hidden_size: int, length: int) -> int:
        """A step after L tokens has L + 1 pairs."""
        return 2 * cls.count(options, hidden_size) + 4 * (length + 1) * hidden_size
