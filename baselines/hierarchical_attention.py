"""Attention to the past at ever coarser resolution, after H-Transformer-1D (Zhu & Soricut, arXiv 2107.11906).

Tokens lie in blocks of S. A token reads its own block and the one before it exactly. At level l = 1, 2 … the text is
a row of cells, each the mean of 2^l keys and of 2^l values, and S cells make a block; there a token reads the cells of
the block before its own which no finer level covers: all S of them, or, where its level-(l - 1) block is the first half
of its level-l block, the first half of them. So every token of the past is covered once, what is l levels away by

    sum over a cell of exp(q · k_j) v_j  ≈  2^l exp(q · mean k) mean v

as there (section 6). That paper averages queries too, which no causal model can; here queries stay single, and the
cells they read were complete before their block began. With `levels` coarse levels a token reads S (levels + 2) keys
instead of L and reaches between one and two times S 2^levels tokens back: the cost is logarithmic in the reach. The
state is the last 2 S cells of each level, of the same size after any number of tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines import _mixer
from baselines._mixer_family import MixerFamily
from baselines._rotary import rotary


@dataclass
class Config(_mixer.MixerConfig):
    """Options of hierarchical attention; sizes are taken from `size` where they are None."""

    family: str = "hierarchical_attention"
    block_size: int = 16
    """Tokens of a block, and cells of one, S; a power of two."""
    levels: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size < 2 or self.block_size & (self.block_size - 1):
            raise ValueError(f"hierarchical_attention: block_size={self.block_size} must be a power of two from 2 on")
        if self.levels < 0:
            raise ValueError(f"hierarchical_attention: levels={self.levels} must be at least 0")

    @property
    def reach(self) -> int:
        """Keys and cells that a query is gathered with."""
        return self.block_size * (self.levels + 2)

    def rows(self, length: int) -> int:
        """Queries that are gathered together: a block, or the largest part of one, by halving, that `length` fills."""
        return min(self.block_size, 1 << (length.bit_length() - 1))


class Cells(NamedTuple):
    """The last 2 S cells of each level, tokens first: [B, heads, levels + 1, 2 S, f]; and how many tokens were read."""

    keys: Tensor
    values: Tensor
    tokens: int


class HierarchicalAttention(_mixer.Mixer):
    """Hierarchical attention with its projections."""

    kernel_path = "sdpa"

    def __init__(self, options: Config, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        assert options.head_dim is not None
        self.options, self.heads = options, hidden_size // options.head_dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, state: Cells | None, keep: bool, wanted: int = 0) -> tuple[Tensor, Cells | None]:
        """x [B, L, H]."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if state is None:
            empty = k.new_zeros(*k.shape[:2], self.options.levels + 1, 2 * self.options.block_size, k.shape[-1])
            state = Cells(empty, empty, 0)
        start, length = state.tokens, x.shape[1]
        positions = torch.arange(start, start + length, device=x.device)
        q, k = rotary(q, positions), rotary(k, positions)
        keys, values = self._levels(state.keys, k, start), self._levels(state.values, v, start)
        y = self._attend(q, keys, values, start)
        after = None
        if keep:
            last = slice(-2 * self.options.block_size, None)
            kept = [torch.stack([c[:, :, last] for c in cells], 2) for cells in (keys, values)]
            after = Cells(kept[0], kept[1], start + length)
        return self.o_proj(y[:, :, -wanted:].transpose(1, 2).flatten(2)), after

    def _levels(self, kept: Tensor, new: Tensor, start: int) -> list[Tensor]:
        """Of each level the `kept` cells and, behind them, those that `new` [B, heads, L, f] completes."""
        cells = [torch.cat([kept[:, :, 0], new], 2)]
        for level in range(1, self.options.levels + 1):
            if (start >> (level - 1)) % 2:
                new = torch.cat([kept[:, :, level - 1, -1:], new], 2)
            new = new[:, :, : new.shape[2] // 2 * 2].unflatten(2, (-1, 2)).mean(3)
            cells.append(torch.cat([kept[:, :, level], new], 2))
        return cells

    def _attend(self, q: Tensor, keys: list[Tensor], values: list[Tensor], start: int) -> Tensor:
        """y [B, heads, L, f] of q [B, heads, L, f], the first of which is token `start`."""
        size, length = self.options.block_size, q.shape[2]
        rows = self.options.rows(length)
        offset = start % rows
        blocks = -(-(offset + length) // rows)
        starts = start - offset + rows * torch.arange(blocks, device=q.device)
        block = starts // size
        k, v = (
            torch.cat([self._read(level, c, block, start) for level, c in enumerate(cells)], 3).flatten(1, 2)
            for cells in (keys, values)
        )
        end = blocks * rows - offset - length
        q = F.pad(q, (0, 0, offset, end)).unflatten(2, (blocks, rows)).flatten(1, 2)
        bias = self._bias(starts, block, rows, q.dtype).repeat(self.heads, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return y.unflatten(1, (self.heads, blocks)).flatten(2, 3)[:, :, offset : offset + length]

    def _read(self, level: int, cells: Tensor, block: Tensor, start: int) -> Tensor:
        """Cells that query blocks `block` [n] read at `level`: [B, heads, n, S, f], of tokens, level 0, 2 S."""
        size = self.options.block_size
        first = ((block >> level) - 1) * size - (start >> level) + 2 * size
        if level == 0:
            cells = F.pad(cells, (0, 0, 0, size))
        place = first[:, None] + torch.arange(size * (2 if level == 0 else 1), device=block.device)
        return cells[:, :, place]

    def _bias(self, starts: Tensor, block: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
        """What is added to scores, [n, rows, keys]: l log 2 for a cell of level l, - inf for what is not read."""
        size, device = self.options.block_size, starts.device
        token = (block[:, None, None] - 1) * size + torch.arange(2 * size, device=device)
        seen = (token >= 0) & (token <= starts[:, None, None] + torch.arange(rows, device=device)[:, None])
        parts = [torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, -torch.inf)]
        for level in range(1, self.options.levels + 1):
            whole, exists = ((block >> (level - 1)) % 2 == 1)[:, None], ((block >> level) > 0)[:, None]
            read = ((torch.arange(size, device=device) < size // 2) | whole) & exists
            weight = torch.full(read.shape, level * math.log(2), dtype=dtype, device=device)
            parts.append(weight.masked_fill(~read, -torch.inf)[:, None].expand(-1, rows, -1))
        return torch.cat(parts, 2)

    @classmethod
    def count(cls, options: Config, hidden_size: int) -> int:
        """Four square projections."""
        return 4 * hidden_size * hidden_size

    @classmethod
    def flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """Per token 2 a weight; per query of whole blocks 4 H for each key or cell that it is gathered with.

        The means cost 4 H a token, below one percent, and are left out.
        """
        rows = options.rows(length)
        queries = -(-length // rows) * rows
        return 8 * length * hidden_size * hidden_size + 4 * queries * options.reach * hidden_size


class HierarchicalAttentionModel(MixerFamily):
    """Hierarchical attention behind the common interface."""

    Config = Config
    Mixer = HierarchicalAttention
