"""Keys and values of a Transformer in memory that has room for more, instead of a new copy of all for every token.

A prompt is kept in exactly the memory it needs. The first single token after it copies everything once to where there
is room for RESERVE more; attention reads all of it for every token anyway, so a copy every RESERVE tokens costs next to
nothing, and however long the text, never more than RESERVE tokens' memory lies idle. Twice the memory at each growth,
the usual choice, would leave up to half of it idle and the number of bytes that a state holds without meaning.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

RESERVE = 128


class GrowingCache(DynamicCache):
    """A `DynamicCache` that writes new tokens in place, as long as no gradient is asked for."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.layer_class_to_replicate = None
        self.layers = [GrowingLayer() for _ in range(num_layers)]


class GrowingLayer(DynamicLayer):
    """`keys` and `values` [B, heads, L, d] are the used part of `room` [2, B, heads, L or more, d]."""

    room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of more tokens; returns those of all."""
        if key_states.requires_grad:
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new, start = key_states.shape[-2], self.get_seq_length()
        if not self._has_room(start + new):
            self._move(key_states, start + new + (RESERVE if new == 1 else 0))
        assert self.room is not None
        self.room[0, :, :, start : start + new] = key_states
        self.room[1, :, :, start : start + new] = value_states
        self.keys, self.values = self.room[:, :, :, : start + new]
        return self.keys, self.values

    def _has_room(self, length: int) -> bool:
        """Whether `keys` still lie in `room` (beam search replaces them), and `length` tokens would."""
        room, keys = self.room, self.keys
        if room is None or keys is None:
            return False
        return keys.data_ptr() == room.data_ptr() and length <= room.shape[-2]

    def _move(self, like: Tensor, capacity: int) -> None:
        """Keys and values so far to new room, of heads as in `like` [B, heads, *, d]."""
        rows, heads, _, width = like.shape
        room = like.new_empty(2, rows, heads, capacity, width)
        for part, kept in zip(room, (self.keys, self.values), strict=True):
            if kept is not None and kept.numel():
                part[:, :, : kept.shape[-2]] = kept
        self.room = room
