"""Softmax attention that reads a part of the past: a window, and with it first tokens and random blocks.

    window          token i reads tokens i - window + 1 … i
    global tokens   and the first tokens of the text (Longformer, Beltagy et al., arXiv 2004.05150, section 3.1)
    random blocks   and blocks drawn from before the window (BigBird, Zaheer et al., arXiv 2007.14062, section 2)

Both papers read in both directions; here each pattern is cut to the past. A query block draws one block from each of
`random_blocks` equal stretches of its past, by a hash of its number and the head: the pattern depends on position
alone, so a text may be fed in any pieces. Query blocks are gathered with the keys they may read, so that no [L, L]
is made; FlexAttention, which would skip blocks of a mask, has no backward on the CPU. What no later token can read is
forgotten: a state is window - 1 tokens and the global ones; with random blocks any token may still be drawn.
"""

from __future__ import annotations

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
    """Options of sparse attention; sizes are taken from `size` where they are None."""

    family: str = "sparse_attention"
    window: int = 128
    global_tokens: int = 0
    random_blocks: int = 0
    block_size: int = 16
    """Tokens of a block, a power of two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("window", 1), ("global_tokens", 0), ("random_blocks", 0), ("block_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"sparse_attention: {name}={getattr(self, name)} must be at least {least}")
        if self.block_size & (self.block_size - 1):
            raise ValueError(f"sparse_attention: block_size={self.block_size} must be a power of two")

    def reach(self, rows: int) -> int:
        """Keys that a block of `rows` queries is gathered with."""
        return self.window - 1 + rows + self.global_tokens + self.random_blocks * self.block_size

    def rows(self, length: int) -> int:
        """Queries that are gathered together: a block, or the largest part of one, by halving, that `length` fills."""
        return min(self.block_size, 1 << (length.bit_length() - 1))


class Cache(NamedTuple):
    """Rotated keys and values, each [B, heads, …, f]: the last ones, the first ones, and how many tokens were read."""

    keys: Tensor
    values: Tensor
    global_keys: Tensor
    global_values: Tensor
    tokens: int


class SparseAttention(_mixer.Mixer):
    """Sparse attention with its projections."""

    kernel_path = "sdpa"

    def __init__(self, options: Config, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        assert options.head_dim is not None
        self.options, self.heads = options, hidden_size // options.head_dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, state: Cache | None, keep: bool, wanted: int = 0) -> tuple[Tensor, Cache | None]:
        """x [B, L, H]."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if state is None:
            state = self._empty(k)
        positions = torch.arange(state.tokens, state.tokens + x.shape[1], device=x.device)
        q, k = rotary(q, positions), rotary(k, positions)
        after = self._extended(state, k, v)
        y = self._attend(q, after, state.tokens)
        if not self.options.random_blocks:
            last = slice(x.shape[1], None)
            after = after._replace(keys=after.keys[:, :, last], values=after.values[:, :, last])
        return self.o_proj(y[:, :, -wanted:].transpose(1, 2).flatten(2)), after if keep else None

    def _empty(self, k: Tensor) -> Cache:
        past = 0 if self.options.random_blocks else self.options.window - 1
        last, first = (k.new_zeros(*k.shape[:2], n, k.shape[-1]) for n in (past, self.options.global_tokens))
        return Cache(last, last, first, first, 0)

    def _extended(self, state: Cache, k: Tensor, v: Tensor) -> Cache:
        """`state` with the new keys and values at its end, and the first of them where they belong."""
        start, most = state.tokens, self.options.global_tokens
        firsts: list[Tensor] = []
        for first, new in ((state.global_keys, k), (state.global_values, v)):
            added = new[:, :, : max(0, most - start)]
            firsts.append(torch.cat([first[:, :, :start], added, first[:, :, start + added.shape[2] :]], 2))
        keys, values = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        return Cache(keys, values, firsts[0], firsts[1], start + k.shape[2])

    def _attend(self, q: Tensor, cache: Cache, start: int) -> Tensor:
        """y [B, heads, L, f] of q [B, heads, L, f], the first of which is token `start`."""
        options, length = self.options, q.shape[2]
        rows = options.rows(length)
        offset = start % rows
        blocks = -(-(offset + length) // rows)
        end = blocks * rows - offset - length
        starts = start - offset + rows * torch.arange(blocks, device=q.device)
        front = options.window - 1 + offset - (cache.keys.shape[2] - length)
        drawn, exists = self._drawn(starts // options.block_size)
        gathered = []
        for last, first in ((cache.keys, cache.global_keys), (cache.values, cache.global_values)):
            near = F.pad(last, (0, 0, front, end)).unfold(2, options.window - 1 + rows, rows).mT
            parts = [near, first.unsqueeze(2).expand(-1, -1, blocks, -1, -1)]
            if options.random_blocks:
                parts.append(self._blocks(last, drawn))
            gathered.append(torch.cat(parts, 3).flatten(1, 2))
        q = F.pad(q, (0, 0, offset, end)).unflatten(2, (blocks, rows)).flatten(1, 2)
        mask = self._mask(starts, rows, drawn, exists)
        y = F.scaled_dot_product_attention(q, gathered[0], gathered[1], attn_mask=mask)
        return y.unflatten(1, (self.heads, blocks)).flatten(2, 3)[:, :, offset : offset + length]

    def _drawn(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Random blocks [heads, n, r] that query blocks `block` [n] read, and whether each exists."""
        r, options = self.options.random_blocks, self.options
        before = (block - -(-(options.window - 1) // options.block_size)).clamp(min=0)[:, None]
        stretch = torch.arange(r, device=block.device)
        low, high = (s * before // max(1, r) for s in (stretch, stretch + 1))
        head = torch.arange(self.heads, device=block.device)[:, None, None]
        mixed = (block[:, None] * 0x9E3779B1 + head * 0x85EBCA77 + stretch * 0xC2B2AE3D + 1) * 0x5851F42D4C957F2D
        size = high - low
        return low + (mixed >> 33 & 0x7FFFFFFF) % size.clamp(min=1), (size > 0).expand(self.heads, -1, -1)

    def _blocks(self, past: Tensor, drawn: Tensor) -> Tensor:
        """Blocks `drawn` [heads, n, r] of `past` [B, heads, T, f]: [B, heads, n, r S, f]."""
        size = self.options.block_size
        past = F.pad(past, (0, 0, 0, -past.shape[2] % size)).unflatten(2, (-1, size))
        head = torch.arange(self.heads, device=drawn.device)[:, None, None]
        return past[:, head, drawn].flatten(3, 4)

    def _mask(self, starts: Tensor, rows: int, drawn: Tensor, exists: Tensor) -> Tensor:
        """Who reads what, [heads n, rows, keys]: every pair of tokens at most once, nothing of the future."""
        options, device = self.options, starts.device
        row = torch.arange(rows, device=device)[:, None]
        near = torch.arange(options.window - 1 + rows, device=device)
        position = starts[:, None, None] - (options.window - 1) + near
        inside = (near >= row) & (near <= row + options.window - 1) & (position >= options.global_tokens)
        first = torch.arange(options.global_tokens, device=device) <= starts[:, None, None] + row
        parts = [inside.expand(self.heads, -1, -1, -1), first.expand(self.heads, -1, -1, -1)]
        if options.random_blocks:
            token = drawn.unsqueeze(-1) * options.block_size + torch.arange(options.block_size, device=device)
            seen = (exists.unsqueeze(-1) & (token >= options.global_tokens)).flatten(2)
            parts.append(seen.unsqueeze(2).expand(-1, -1, rows, -1))
        return torch.cat(parts, 3).flatten(0, 1)

    @classmethod
    def count(cls, options: Config, hidden_size: int) -> int:
        """Four square projections."""
        return 4 * hidden_size * hidden_size

    @classmethod
    def flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """Per token 2 a weight; per query of whole blocks 4 H for each key that it is gathered with."""
        rows = options.rows(length)
        queries = -(-length // rows) * rows
        return 8 * length * hidden_size * hidden_size + 4 * queries * options.reach(rows) * hidden_size


class SparseAttentionModel(MixerFamily):
    """Sparse attention behind the common interface."""

    Config = Config
    Mixer = SparseAttention
