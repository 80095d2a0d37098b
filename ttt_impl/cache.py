"""The memory of a TTT language model between forward passes, of a size that does not grow with what was read.

Per layer: the fast weights with the rows of the open mini-batch (`state.py`), the last inputs of the convolutions,
and for the next-token task the last key. Rows of the batch keep their own positions, so prompts of different length,
chunks of any size and left padding mix freely.

Tokens can also be taken back (`crop`), as speculative decoding does with rejected ones. Inside the open mini-batch
that drops rows. Across its start the old weights are needed, so a cache told to `rewind` keeps the last few
mini-batches as they were before they closed, and more inputs of the convolutions; each costs its size once more.

A step of one token can be held by a CUDA graph once the cache is told to `fix` its tensors: they then keep their
addresses, and the device counts the tokens, so that a replayed step is right at every place of a mini-batch.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
    fixed: bool = False
    """Whether tensors keep their addresses, new contents being copied into them."""

    def record(self, size: int) -> int:
        """How many closed mini-batches of `size` tokens are worth keeping."""
        return -(-self.rewind // size)

    def move(self, fast: FastWeights | None, closed: Sequence[FastWeights], size: int) -> None:
        """Take over the state after a chunk."""
        if self.fixed and self.fast is not None and fast is not None:
            _overwrite((*self.fast.weights, *self.fast.rows), (*fast.weights, *fast.rows))
            return
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

    def fix(self) -> None:
        """Give every tensor the address that it keeps."""
        assert self.fast is not None
        self.fast = self.fast.each(lambda x: x.clone(memory_format=torch.contiguous_format))
        self.past = {name: x.clone() for name, x in self.past.items()}
        self.closed, self.fixed = [], True

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
        if past is None:
            return None
        recent = past[:, past.shape[1] - count :]
        return recent.clone() if self.fixed else recent  # `remember` writes over it

    def remember(self, name: str, x: Tensor, count: int) -> None:
        """Store enough inputs to recall `count`, even after a rewind; zeros before the first token."""
        past = self.past.get(name)
        if past is None:
            past = x.new_zeros(len(x), count, x.shape[2])
        most = count + self.rewind
        joined = torch.cat([past, x[:, -most:]], 1).detach()
        kept = joined[:, max(0, joined.shape[1] - most) :]
        if self.fixed:
            past.copy_(kept)
        else:
            self.past[name] = kept.clone()


class TTTCache:
    """Handed to and from the model as `past_key_values`; empty until the first forward pass."""

    is_compileable = False

    def __init__(self, config: TTTConfig, rewind: int = 0) -> None:
        self.config, self.rewind = config, rewind
        self.layers = [LayerState(rewind=rewind) for _ in range(config.num_hidden_layers)]
        self.recorded = 0
        """Columns read since the cache could rewind."""
        self.counter: Tensor | None = None
        """Tokens read in each row [B], counted on the device; None: counted here. See `fix`."""
        self._positions: list[int] = []
        self._columns = 0

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def positions(self) -> list[int]:
        """Tokens read in each row, padding not counted."""
        return self._positions if self.counter is None else self.counter.tolist()

    @property
    def columns(self) -> int:
        """Columns read, padding counted: what `generate` calls the sequence length."""
        return self._columns if self.counter is None else self._columns + self.positions[0] - self._positions[0]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of input read so far."""
        return self.columns

    def nbytes(self) -> int:
        """Bytes of every tensor stored."""
        return sum(x.nbytes for layer in self.layers for x in layer.tensors())

    def copy(self) -> "TTTCache":
        """A cache of its own with the same contents, its addresses not fixed."""
        other = TTTCache(self.config, self.rewind)
        other._positions, other._columns, other.recorded = list(self.positions), self.columns, self.recorded
        other.layers = copy.deepcopy(self.layers)
        for layer in other.layers:
            layer.fixed = False
        return other

    def fix(self) -> None:
        """Keep every tensor at one address and count tokens on the device, as a CUDA graph needs it.

        From then on each call reads one token a row, without a mask. `copy` gives a cache without these limits.
        """
        if not self._positions or self.rewind:
            raise ValueError(
                f"fix with rewind={self.rewind} after {max(self._positions, default=0)} tokens; "
                "valid choices: a cache without rewind that has read at least one token"
            )
        for layer in self.layers:
            layer.fix()
        if self.counter is None:
            assert self.layers[0].fast is not None
            self.counter = torch.tensor(self._positions, device=self.layers[0].fast.weights[0].device)

    def start(self, batch: int) -> None:
        """Begin a chunk of `batch` rows."""
        self._positions = self._positions or [0] * batch
        if len(self._positions) != batch:
            raise ValueError(
                f"batch of {batch} rows for a cache of {len(self._positions)}; valid choices: the same batch, "
                "or cache.batch_select_indices / batch_repeat_interleave first"
            )

    def advance(self, length: int, padding: Tensor | None) -> None:
        """Finish a chunk of `length` columns."""
        if self.counter is not None:
            self.counter += length
            return
        skipped = [0] * len(self._positions) if padding is None else padding.sum(1).tolist()
        self._positions = [p + length - s for p, s in zip(self._positions, skipped, strict=True)]
        self._columns += length
        self.recorded += length if self.rewind else 0

    def activate_past_recording(self) -> None:
        """Be ready for `crop`; transformers calls this before speculative decoding."""
        self._refuse_fixed("activate_past_recording")
        self.rewind = self.rewind or REWIND
        for layer in self.layers:
            layer.rewind = self.rewind

    def crop(self, max_length: int) -> None:
        """Go back to `max_length` columns, or by `-max_length` columns if not positive (transformers' convention)."""
        removed = -max_length if max_length <= 0 else self.columns - max_length
        if removed <= 0:
            return
        self._refuse_fixed("crop")
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
        self._positions = [target] * len(self._positions)
        self._columns -= removed
        self.recorded -= removed

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in that order."""
        self._each_row(lambda x: x.index_select(0, indices.to(x.device)), indices.tolist())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows follow their beams."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        rows = [i for i in range(len(self._positions)) for _ in range(repeats)]
        self._each_row(lambda x: x.repeat_interleave(repeats, 0), rows)

    def reset(self) -> None:
        """Forget everything."""
        self.__dict__.update(TTTCache(self.config, self.rewind).__dict__)

    def _each_row(self, function: Callable[[Tensor], Tensor], rows: Sequence[int]) -> None:
        if not self._positions:
            return
        self._refuse_fixed("moving rows")
        for layer in self.layers:
            layer.each_row(function, len(self._positions))
        self._positions = [self._positions[i] for i in rows]

    def _refuse_fixed(self, what: str) -> None:
        if self.counter is not None:
            raise ValueError(f"{what} on a cache of fixed addresses; valid choices: cache.copy(), which has none")


def _overwrite(old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Copy what lives elsewhere into the old place."""
    for to, value in zip(old, new, strict=True):
        if to is not value:
            to.copy_(value)
