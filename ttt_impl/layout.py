"""Where each token of a chunk sits in the mini-batches.

The scan knows only whole mini-batches of K slots. Sequences do not oblige: a cache may stand in the middle of a
mini-batch, at another place in every row of the batch; prompts are padded on the left; documents packed in one row
each start a mini-batch of their own with fresh weights. A `Layout` maps tokens to slots for all of these. Slots that
stay empty carry learning rate zero and so teach nothing; a mini-batch that is not full does not close.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Slots of a chunk [B, L] in M mini-batches of K; tensors are None where the plain order of tokens serves."""

    size: int
    """K."""
    count: int
    """M."""
    length: int
    """L."""
    slots: Tensor | None = None
    """Slot of each token [B, L]; M * K for padding."""
    sources: Tensor | None = None
    """Token in each slot [B, M * K]; L where empty."""
    close: Tensor | None = None
    """Which mini-batches are full [B, M]; None: all."""
    resets: dict[int, Tensor] = field(default_factory=dict)
    """Mini-batch -> rows [B] that start a document there."""
    age: Tensor | None = None
    """Tokens before this one in its document [B, L]; None: no packed documents."""
    taken: Tensor | None = None
    """Slots of the open mini-batch taken before the chunk [B]; None: none in any row."""
    fill: tuple[int, ...] = ()
    """The same in Python; empty: none in any row, or, where tokens are counted on the device, not known."""
    padding: Tensor | None = None
    """Where the chunk holds padding [B, L]; None: nowhere."""

    @property
    def fits_open(self) -> bool:
        """Whether every row stays inside its open mini-batch (and so at most closes it)."""
        return self.count == 1 and self.padding is None and self.age is None

    def places(self, device: torch.device) -> Tensor:
        """Place of each token in its mini-batch, [1 or B, L]."""
        if self.slots is None:
            return torch.arange(self.length, device=device)[None] % self.size
        return self.slots % self.size

    def cut(self, x: Tensor) -> Tensor:
        """[B, H, L, ...] -> [M, B * H, K, ...], zeros in empty slots."""
        if self.sources is None:
            missing = self.count * self.size - self.length
            if missing:
                x = torch.cat([x, x.new_zeros(*x.shape[:2], missing, *x.shape[3:])], 2)
            return x.unflatten(2, (self.count, self.size)).movedim(2, 0).flatten(1, 2)
        rows = _gather(x.transpose(1, 2), self.sources)
        return rows.unflatten(1, (self.count, self.size)).permute(1, 0, 3, 2, *range(4, x.ndim + 1)).flatten(1, 2)

    def join(self, x: Tensor, batch: int) -> Tensor:
        """Inverse of `cut`; [M, B * H, K, f] -> [B, H, L, f], zeros at padding."""
        x = x.unflatten(1, (batch, -1)).movedim(0, 2).flatten(2, 3)
        if self.slots is None:
            return x[:, :, : self.length]
        return _gather(x.transpose(1, 2), self.slots).transpose(1, 2)


def plain(length: int, size: int, device: torch.device) -> Layout:
    """Every row starts a mini-batch with the chunk's first token."""
    count = -(-length // size)
    if length % size == 0:
        return Layout(size, count, length)
    close = torch.ones(1, count, dtype=torch.bool, device=device)
    close[:, -1] = False
    return Layout(size, count, length, close=close)


def continued(length: int, size: int, positions: Sequence[int], padding: Tensor | None, device: torch.device) -> Layout:
    """Rows that have read `positions` tokens each, the chunk possibly padded on the left (`padding` [B, L])."""
    fill = tuple(p % size for p in positions)
    if padding is None and not any(fill):
        return plain(length, size, device)
    taken = torch.tensor(fill, device=device)
    real = torch.ones(len(fill), length, dtype=torch.bool, device=device) if padding is None else ~padding
    rank = real.cumsum(1) - 1 + taken[:, None]
    totals = real.sum(1, keepdim=True) + taken[:, None]
    most = max(fill) + length if padding is None else int(totals.max())
    count = max(1, -(-most // size))
    slots = torch.where(real, rank, count * size)
    borders = torch.arange(1, count + 1, device=device) * size
    return Layout(
        size, count, length, slots, _sources(slots, count * size), close=borders <= totals,
        taken=taken if any(fill) else None, fill=fill, padding=padding,
    )  # fmt: skip


def counted(size: int, read: Tensor) -> Layout:
    """One token a row after the `read` [B] tokens that the device has counted; nothing here asks the device.

    So the same operations are right at every place, and a CUDA graph may hold them.
    """
    taken = read % size
    slots = taken[:, None]
    return Layout(size, 1, 1, slots, _sources(slots, size), close=slots + 1 == size, taken=taken)


def packed(starts: Tensor, size: int) -> Layout:
    """Documents packed in rows; `starts` [B, L] marks first tokens, every row beginning with one."""
    rows, length = starts.shape
    index = torch.arange(length, device=starts.device).expand(rows, length)
    first = torch.where(starts, index, 0).cummax(1).values
    age = index - first
    # A document of n tokens takes ceil(n / K) mini-batches: a new one begins wherever age is a multiple of K.
    mini_batch = (age % size == 0).cumsum(1) - 1
    count = int(mini_batch.max()) + 1
    slots = mini_batch * size + age % size
    sources = _sources(slots, count * size)
    fresh = torch.zeros(rows, count, dtype=torch.bool, device=starts.device)
    fresh[starts.nonzero()[:, 0], mini_batch[starts]] = True
    fresh[:, 0] = False
    resets = {m: fresh[:, m] for m in fresh.any(0).nonzero().flatten().tolist()}
    close = (sources < length).unflatten(1, (count, size)).all(2)
    return Layout(size, count, length, slots, sources, close, resets, age)


def _sources(slots: Tensor, total: int) -> Tensor:
    """Invert token -> slot into slot -> token, [B, total], with L in empty slots."""
    rows, length = slots.shape
    sources = slots.new_full((rows, total + 1), length)
    sources.scatter_(1, slots, torch.arange(length, device=slots.device).expand(rows, length))
    return sources[:, :total]


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """x [B, n, ...], index [B, m] with n meaning nothing -> [B, m, ...], zeros where nothing."""
    rows, count = x.shape[:2]
    flat = torch.cat([x.flatten(0, 1), x.new_zeros(1, *x.shape[2:])])
    offset = torch.arange(rows, device=x.device)[:, None] * count
    return flat[torch.where(index < count, index + offset, rows * count)]
