"""Causal softmax attention: one operator of the CPU that skips what lies above the diagonal, or PyTorch's.

`_causal_attention.cpp` beside this module says how; here it is called and given to autograd. It reads queries, keys and
values where they lie, be it a projection's output or a cache, and computes in float32. Other types, other devices,
`torch.compile` and a few queries after many keys, which leave its lanes empty, go to PyTorch's.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_float, c_int, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from baselines._heads import Heads, empty_heads, fits, heads
from baselines._series import operator, with_channels_together

SOURCE = Path(__file__).with_name("_causal_attention.cpp")
FEWEST_QUERIES = 16
"""Below, PyTorch's is faster."""


class Problem(Structure):
    """`Problem` of the C++."""

    _fields_ = (
        *((name, c_int) for name in ("rows", "heads", "groups", "queries", "keys", "width", "threads")),
        ("scale", c_float),
        *((name, Heads) for name in ("q", "k", "v", "y")),
        ("norms", c_void_p),
    )


class Gradients(Structure):
    """`Gradients` of the C++."""

    _fields_ = tuple((name, Heads) for name in ("y", "q", "k", "v"))


def attention_path(q: Tensor, k: Tensor, v: Tensor) -> str:
    """What `causal_attention` takes for these: `fused-cpu` or `sdpa`."""
    return "fused-cpu" if q.shape[2] >= FEWEST_QUERIES and fits(SOURCE, q, k, v) else "sdpa"


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """y [B, heads, L, f] of q [B, heads, L, f], the last of the tokens of k and v [B, heads of keys, tokens, f].

    Each head of keys serves as many heads of queries; `scale` None: 1 / sqrt(f).
    """
    if attention_path(q, k, v) == "fused-cpu":
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        y: Tensor = _CausalAttention.apply(*map(with_channels_together, (q, k, v)), scale, torch.is_grad_enabled())
        return y
    mask = causal_mask(q, k)
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=mask is None and q.shape[2] > 1, scale=scale, enable_gqa=True
    )


def causal_mask(q: Tensor, k: Tensor) -> Tensor | None:
    """Which keys [L, tokens] the last L tokens see; None where PyTorch needs no mask for it."""
    length, tokens = q.shape[2], k.shape[2]
    if length in (1, tokens):
        return None
    return torch.ones(length, tokens, dtype=torch.bool, device=q.device).tril(tokens - length)


class _CausalAttention(torch.autograd.Function):
    """`causal_attention`; `saves` tells whether a backward can follow, which needs each query's maximum and sum."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, saves: bool) -> Tensor:
        y = empty_heads(q)
        norms = q.new_empty(*q.shape[:2], 2, q.shape[2]) if saves else None
        operator(SOURCE, "attention_forward")(byref(_problem(q, k, v, y, norms, scale)))
        ctx.save_for_backward(q, k, v, y, norms)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, norms = ctx.saved_tensors
        grads, dy = [empty_heads(x) for x in (q, k, v)], with_channels_together(dy)
        gradients = Gradients(heads(dy), *map(heads, grads))
        operator(SOURCE, "attention_backward")(byref(_problem(q, k, v, y, norms, ctx.scale)), byref(gradients))
        return *grads, None, None


def _problem(q: Tensor, k: Tensor, v: Tensor, y: Tensor, norms: Tensor | None, scale: float) -> Problem:
    rows, count, length, width = q.shape
    sizes = (rows, count, k.shape[1], length, k.shape[2], width, torch.get_num_threads())
    return Problem(*sizes, scale, *map(heads, (q, k, v, y)), None if norms is None else norms.data_ptr())
