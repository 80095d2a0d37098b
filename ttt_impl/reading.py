"""What all layers share while reading one chunk: where its tokens sit, and how they are rotated."""

from typing import NamedTuple

import torch
from torch import Tensor

from ttt_impl.configuration import TTTConfig
from ttt_impl.layout import Layout, continued, counted, packed
from ttt_impl.rope import rotations


class Reading(NamedTuple):
    """One chunk [B, L] on its way through the layers."""

    layout: Layout
    rotation: Tensor
    """RoPE of each token, complex [1 or B, L, f / 2]."""
    first: Tensor | None
    """Tokens that begin a document [1 or B, L]; None where no layer asks."""

    def without_padding(self, x: Tensor) -> Tensor:
        """x [B, L, C] with zeros at padding, so that convolutions see nothing there."""
        padding = self.layout.padding
        return x if padding is None else x.masked_fill(padding[..., None], 0)


def read(config: TTTConfig, x: Tensor, positions: list[int], padding: Tensor | None, starts: Tensor | None) -> Reading:
    """Reading of embeddings x [B, L, C] after `positions` tokens a row; `starts` [B, L]: packed documents instead."""
    length, size = x.shape[1], config.mini_batch_size
    layout = continued(length, size, positions, padding, x.device) if starts is None else packed(starts, size)
    work = torch.promote_types(x.dtype, torch.float32)
    table = rotations(size, config.head_dim, config.rope_theta, x.device, work)
    first = None
    if config.inner_task == "next_token":
        first = starts if starts is not None else _first(length, positions, padding, x.device)
    return Reading(layout, table[layout.places(x.device)], first)


def read_counted(config: TTTConfig, x: Tensor, before: Tensor) -> Reading:
    """Reading of one token a row, x [B, 1, C], after the `before` [B] tokens that the device has counted."""
    layout, work = counted(config.mini_batch_size, before), torch.promote_types(x.dtype, torch.float32)
    table = rotations(layout.size, config.head_dim, config.rope_theta, x.device, work)
    first = (before == 0)[:, None] if config.inner_task == "next_token" else None
    return Reading(layout, table[layout.places(x.device)], first)


def _first(length: int, positions: list[int], padding: Tensor | None, device: torch.device) -> Tensor:
    """Where the first real token of each row is, [B, L]; nowhere in rows that have read some."""
    untouched = torch.tensor([p == 0 for p in positions], device=device)[:, None]
    if padding is None:
        return untouched & (torch.arange(length, device=device) == 0)
    real = ~padding
    return untouched & real & (real.cumsum(1) == 1)
