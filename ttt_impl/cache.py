"""The memory of a TTT language model between forward passes, of a size that does not grow with what was read.

Per layer: the fast weights with the rows of the open mini-batch (`state.py`), the last inputs of the convolutions,
and for the next-token task the last key. Rows of the batch keep their own positions, so prompts of different length,
chunks of any size and left padding mix freely.

Tokens can also be taken back (`crop`), as speculative decoding does with rejected ones. Inside the open mini-batch
that drops rows. Across its start the old weights are needed, so a cache told to `rewind` keeps the last few
mini-batches as they were before they closed, and more inputs of the convolutions; each costs its size once more.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ttt_impl.configuration import TTTConfig
from ttt_impl.state import FastWeights

REWIND = 64
"""Tokens that speculative decoding may take back."""


@dataclass
class LayerState:
    """What one layer remembers."""

    fast: FastWeights | None = None
    past: dict[str, Tensor] = field(default_factory=dict)
    """Last inputs [B, n, C] of whatever looks back: 'pre_conv', 'qk_conv', 'key'."""
    closed: list[FastWeights] = field(default_factory=list)
    """The last mini-batches, full but not yet folded; kept only by a cache that can rewind."""
    rewind: int = 0
    """Tokens that can be taken back across the start of the open mini-batch."""

    def record(self, size: int) -> int:
        """How many closed mini-batches of `size` tokens are worth keeping."""
        return -(-self.rewind // size)

    def move(self, fast: FastWeights | None, closed: Sequence[FastWeights], size: int) -> None:
        """Take over the state after a chunk."""
        self.fast = fast
        self.closed = (self.closed + list(closed))[-self.record(size) :] if self.rewind else []

    def take_back(self, tokens: int, mini_batches: int, rows: int) -> None:
        """Forget `tokens`, which opens the mini-batch `mini_batches` before this one again, with `rows` rows."""
        if mini_batches:
            self.fast = self.closed[-mini_batches]
            del self.closed[-mini_batches:]
        assert self.fast is not None
        self.fast = self.fast.first_rows(rows)
        self.past = {name: x[:, : x.shape[1] - tokens] for name, x in self.past.items()}

    def tensors(self) -> list[Tensor]:
        """Everything that is stored."""
        states = [*self.closed, *([] if self.fast is None else [self.fast])]
        return [x for s in states for x in (*s.weights, *s.rows)] + list(self.past.values())

    def each_row(self, function: Callable[[Tensor], Tensor], batch: int) -> None:
        """Apply `function` to every tensor as [B, ...]."""

        def per_head(x: Tensor) -> Tensor:
            return function(x.unflatten(0, (batch, -1))).flatten(0, 1)

        if self.fast is not None:
            self.fast = self.fast.each(per_head)
        self.past, self.closed = {name: function(x) for name, x in self.past.items()}, []

    def recall(self, name: str, count: int) -> Tensor | None:
        """The last `count` inputs of `name`, None before the first chunk."""
        past = self.past.get(name)
        return None if past is None else past[:, past.shape[1] - count :]

    def remember(self, name: str, x: Tensor, count: int) -> None:
        """Store enough inputs to recall `count`, even after a rewind; zeros before the first token."""
        past = self.past.get(name)
        if past is None:
            past = x.new_zeros(len(x), count, x.shape[2])
        joined = torch.cat([past, x], 1).detach()
        self.past[name] = joined[:, max(0, joined.shape[1] - count - self.rewind) :].clone()


class TTTCache:
    """Handed to and from the model as `past_key_values`; empty until the first forward pass."""

    is_compileable = False

    def __init__(self, config: TTTConfig, rewind: int = 0) -> None:
        self.config, self.rewind = config, rewind
        self.layers = [LayerState(rewind=rewind) for _ in range(config.num_hidden_layers)]
        self.positions: list[int] = []
        """Tokens read in each row, padding not counted."""
        self.columns = 0
        """Columns read, padding counted: what `generate` calls the sequence length."""
        self.recorded = 0
        """Columns read since the cache could rewind."""
        self.decoder: Any = None
        """What `cpu/decode.py` keeps from token to token."""

    def __len__(self) -> int:
        return len(self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of input read so far."""
        return self.columns

    def nbytes(self) -> int:
        """Bytes of every tensor stored."""
        return sum(x.nbytes for layer in self.layers for x in layer.tensors())

    def copy(self) -> "TTTCache":
        """A cache of its own with the same contents."""
        other = TTTCache(self.config, self.rewind)
        other.positions, other.columns, other.recorded = list(self.positions), self.columns, self.recorded
        other.layers = copy.deepcopy(self.layers)
        return other

    def start(self, batch: int) -> None:
        """Begin a chunk of `batch` rows."""
        self.positions = self.positions or [0] * batch
        if len(self.positions) != batch:
            raise ValueError(
                f"batch of {batch} rows for a cache of {len(self.positions)}; valid choices: the same batch, "
                "or cache.batch_select_indices / batch_repeat_interleave first"
            )

    def advance(self, length: int, padding: Tensor | None) -> None:
        """Finish a chunk of `length` columns."""
        skipped = [0] * len(self.positions) if padding is None else padding.sum(1).tolist()
        self.positions = [p + length - s for p, s in zip(self.positions, skipped, strict=True)]
        self.columns += length
        self.recorded += length if self.rewind else 0

    def activate_past_recording(self) -> None:
        """Be ready for `crop`; transformers calls this before speculative decoding."""
        self.rewind = self.rewind or REWIND
        for layer in self.layers:
            layer.rewind = self.rewind

    def crop(self, max_length: int) -> None:
        """Go back to `max_length` columns, or by `-max_length` columns if not positive (transformers' convention)."""
        removed = -max_length if max_length <= 0 else self.columns - max_length
        if removed <= 0:
            return
        size, position = self.config.mini_batch_size, min(self.positions, default=0)
        target = position - removed
        mini_batches = position // size - target // size
        known = min((len(layer.closed) for layer in self.layers), default=0)
        if len(set(self.positions)) > 1:
            raise ValueError(f"crop with rows at positions {self.positions}; valid choices: rows at the same position")
        if target < 0 or mini_batches > known or removed > min(self.rewind, self.recorded):
            raise ValueError(
                f"crop takes back {removed} of {position} tokens; valid choices: at most {self.rewind}, the rewind of "
                "TTTCache(config, rewind=...), and only tokens read since it was set"
            )
        for layer in self.layers:
            layer.take_back(removed, mini_batches, target % size)
        self.positions = [target] * len(self.positions)
        self.columns -= removed
        self.recorded -= removed

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in that order."""
        self._each_row(lambda x: x.index_select(0, indices.to(x.device)), indices.tolist())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows follow their beams."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        rows = [i for i in range(len(self.positions)) for _ in range(repeats)]
        self._each_row(lambda x: x.repeat_interleave(repeats, 0), rows)

    def reset(self) -> None:
        """Forget everything."""
        self.__dict__.update(TTTCache(self.config, self.rewind).__dict__)

    def _each_row(self, function: Callable[[Tensor], Tensor], rows: Sequence[int]) -> None:
        if not self.positions:
            return
        for layer in self.layers:
            layer.each_row(function, len(self.positions))
        self.positions = [self.positions[i] for i in rows]
