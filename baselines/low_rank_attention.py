"""Low-rank attention (Linformer, Wang et al., arXiv 2006.04768), made causal by blocks.

Linformer projects n keys and values along the sequence onto k, by learned matrices E and F (equation 7), which lets
every token see all others. Here each block of c tokens is projected onto r once it is complete: a token attends, in one
softmax, to the tokens of its own block up to itself, and to r keys and values of every block before. Nothing of a
block is seen from outside until its last token, so causality is exact.

The state is r / c of attention's, and at most a block of keys and values more; it grows by r rows every c tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from baselines import _mixer
from baselines._mixer_family import MixerFamily
from baselines._rotary import rotary

GROUP = 16
"""Blocks whose scores are held at once: memory grows with the blocks before, not with their square."""


@dataclass
class Config(_mixer.MixerConfig):
    """Options of low-rank attention; sizes are taken from `size` where they are None."""

    family: str = "low_rank_attention"
    block: int = 32
    """c, tokens of a block."""
    rank: int = 4
    """r, what a complete block is projected onto."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.rank <= self.block:
            raise ValueError(f"low_rank_attention: rank={self.rank} must lie between 1 and block={self.block}")


class Blocks(NamedTuple):
    """Projected keys and values [B, heads, blocks, r, f] of complete blocks; those of the open one [B, heads, o, f]."""

    keys: Tensor
    values: Tensor
    open_keys: Tensor
    open_values: Tensor


class LowRankAttention(_mixer.Mixer):
    """Attention to one's own block and to projections of those before."""

    kernel_path = "torch-blocks"

    def __init__(self, options: Config, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        assert options.head_dim is not None
        self.heads, self.block = hidden_size // options.head_dim, options.block
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(4)
        )
        self.E = nn.Parameter(torch.empty(self.heads, options.rank, options.block))
        self.F = nn.Parameter(torch.empty(self.heads, options.rank, options.block))

    def forward(self, x: Tensor, state: Blocks | None, keep: bool, wanted: int = 0) -> tuple[Tensor, Blocks | None]:
        """x [B, L, H]."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if state is None:
            none = k.new_zeros(*k.shape[:2], 0, self.E.shape[1], k.shape[-1])
            state = Blocks(none, none, k[:, :, :0], v[:, :, :0])
        k, v = torch.cat([state.open_keys, k], 2), torch.cat([state.open_values, v], 2)
        before, complete = state.keys.shape[2], k.shape[2] // self.block * self.block
        keys = torch.cat([state.keys, self._project(k[:, :, :complete], self.E)], 2)
        values = torch.cat([state.values, self._project(v[:, :, :complete], self.F)], 2)
        y = self._attend(q, k, v, keys, values, before)
        after = Blocks(keys, values, k[:, :, complete:], v[:, :, complete:])
        return self.o_proj(y[:, :, -wanted:].transpose(1, 2).flatten(2)), after if keep else None

    def _project(self, x: Tensor, projection: Tensor) -> Tensor:
        """Complete blocks [B, heads, n c, f] -> [B, heads, n, r, f]."""
        return projection.unsqueeze(1) @ x.unflatten(2, (-1, self.block))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, before: int) -> Tensor:
        """q [B, heads, L, f], the last of k and v [B, heads, o + L, f], which begin with block number `before`."""
        device, opened = q.device, k.shape[2] - q.shape[2]
        positions = before * self.block + torch.arange(k.shape[2], device=device)
        q, k = rotary(q, positions[opened:]), rotary(k, positions)
        ends = (torch.arange(keys.shape[2], device=device) + 1) * self.block - 1
        keys = rotary(keys.transpose(2, 3), ends).transpose(2, 3)
        if len(positions) <= self.block:
            return self._group(q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2), keys, values, before)
        end = -len(positions) % self.block
        padded = (F.pad(q, (0, 0, opened, end)), F.pad(k, (0, 0, 0, end)), F.pad(v, (0, 0, 0, end)))
        groups = zip(*(part.unflatten(2, (-1, self.block)).split(GROUP, 2) for part in padded), strict=True)
        y = [self._group(q, k, v, keys, values, before + n * GROUP) for n, (q, k, v) in enumerate(groups)]
        return torch.cat(y, 2)[:, :, opened : len(positions)]

    def _group(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, first: int) -> Tensor:
        """Blocks number `first` and on: q [B, heads, n, l, f], k, v [B, heads, n, o + l, f] -> y [B, heads, n l, f]."""
        count, length, reach = q.shape[2], q.shape[3], first + q.shape[2] - 1
        near = q @ k.mT
        seen = torch.ones(length, k.shape[3], dtype=torch.bool, device=q.device).tril(k.shape[3] - length)
        near = near.masked_fill(~seen, float("-inf"))
        far_keys, far_values = keys[:, :, :reach].flatten(2, 3), values[:, :, :reach].flatten(2, 3)
        far = q @ far_keys.unsqueeze(2).mT
        number = torch.arange(reach, device=q.device).repeat_interleave(keys.shape[3])
        own = torch.arange(first, first + count, device=q.device)
        far = far.masked_fill((number >= own.unsqueeze(1)).unsqueeze(1), float("-inf"))
        weights = (torch.cat([far, near], -1) * q.shape[-1] ** -0.5).softmax(-1)
        far, near = weights.split([far.shape[-1], near.shape[-1]], -1)
        return (far @ far_values.unsqueeze(2) + near @ v).flatten(2, 3)

    @classmethod
    def count(cls, options: Config, hidden_size: int) -> int:
        """Four square projections; E and F of every head."""
        assert options.head_dim is not None
        return 4 * hidden_size**2 + 2 * hidden_size // options.head_dim * options.rank * options.block

    @classmethod
    def flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """2 a weight and token; 4 H a pair of query and key; 4 r H a token of a complete block to project it."""
        block, rank = options.block, options.rank
        complete, rest = divmod(length, block)
        pairs = complete * block * (block + 1) // 2 + rest * (rest + 1) // 2
        pairs += rank * (block * complete * (complete - 1) // 2 + rest * complete)
        return 8 * length * hidden_size**2 + 4 * hidden_size * (pairs + rank * complete * block)

    @classmethod
    def step_flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """A step sees the rest of its block and r of each before; a block's projection is shared by its steps."""
        complete, rest = divmod(length, options.block)
        return 8 * hidden_size**2 + 4 * hidden_size * (rest + 1 + options.rank * complete + options.rank)

    def initialise(self) -> None:
        """Normal with variance 1 / c: projections keep the scale of what they project."""
        for projection in (self.E, self.F):
            init.normal_(projection, std=self.block**-0.5)


class LowRankAttentionModel(MixerFamily):
    """Low-rank attention behind the common interface."""

    Config = Config
    Mixer = LowRankAttention
