"""Where windows of training tokens lie in a store too large to list them, found one at a time.

`Windows` cuts as `harness.data.batches` does, document by document. What it keeps is how many windows each shard
holds, for which it reads the ends of all training documents once (8 bytes each); a window is then found in
O(log shards + log documents of a shard), the ends of its shard being added up when they are first needed. `Stream`
cuts through all documents as if they were one, so the place of a window is a product.
"""

from __future__ import annotations

import bisect
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data.permutation import drawn
from harness.data.tokens import TokenStore

CUT_SHARDS = 256
"""Shards whose windows a process keeps counted."""


class Layout(Protocol):
    """Windows of length + 1 tokens, numbered within an epoch."""

    count: int

    def window(self, number: int, seed: int, epoch: int) -> NDArray[Any]:
        """Token ids [length + 1]."""
        ...


class _Cut(NamedTuple):
    """A shard's training documents: where each begins, its tokens, the windows before each, and what is left over."""

    starts: NDArray[np.int64]
    before: NDArray[np.int64]
    slack: NDArray[np.int64]


class Windows:
    """Windows that lie within documents, each document cut anew every epoch from an offset of its own."""

    def __init__(self, store: TokenStore, length: int) -> None:
        self._store, self.length = store, length
        self._cut = lru_cache(CUT_SHARDS)(self._cut_shard)
        counts = [int(self._cut_shard(shard).before[-1]) for shard in range(len(store.counts("tokens", "train")))]
        self._before = [0, *accumulate(counts)]
        self.count = self._before[-1]

    def _cut_shard(self, number: int) -> _Cut:
        ends = _array(self._store, number, "ends").astype(np.int64)
        starts = np.append(0, ends[:-1])[: len(ends)]
        targets = np.maximum(ends - starts - 1, 0)
        return _Cut(starts, np.append(0, np.cumsum(targets // self.length)), targets % self.length)

    def window(self, number: int, seed: int, epoch: int) -> NDArray[Any]:
        """Token ids [length + 1]."""
        shard = bisect.bisect_right(self._before, number) - 1
        cut, own = self._cut(shard), number - self._before[shard]
        document = int(np.searchsorted(cut.before, own, side="right")) - 1
        offset = int(drawn(seed, epoch, shard, document)[0]) % (int(cut.slack[document]) + 1)
        begin = int(cut.starts[document]) + offset + (own - int(cut.before[document])) * self.length
        return _array(self._store, shard, "ids")[begin : begin + self.length + 1]


class Stream:
    """Windows over all training documents as one text, cut anew every epoch from one offset."""

    def __init__(self, store: TokenStore, length: int) -> None:
        self._store, self.length = store, length
        self._before = [0, *accumulate(store.counts("tokens", "train"))]
        self.count, self._slack = divmod(self._before[-1] - 1, length)

    def window(self, number: int, seed: int, epoch: int) -> NDArray[Any]:
        """Token ids [length + 1]."""
        begin = int(drawn(seed, epoch)[0]) % (self._slack + 1) + number * self.length
        end, pieces = begin + self.length + 1, []
        while begin < end:
            shard = bisect.bisect_right(self._before, begin) - 1
            first, last = self._before[shard], self._before[shard + 1]
            pieces.append(_array(self._store, shard, "ids")[begin - first : min(end, last) - first])
            begin = last
        return np.concatenate(pieces)


def _array(store: TokenStore, shard: int, name: str) -> NDArray[Any]:
    array = store.shard(shard).array("train", name)
    assert array is not None
    return array
