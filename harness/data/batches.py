"""Training batches as a pure function of (seed, step): the same for every model, and resumed by a number.

Each epoch cuts every document into windows of length + 1 tokens that share one token with their neighbour, so each
token is a target once. Windows never cross a document's border. What is left over at a document's ends varies: each
epoch starts cutting at another pseudo-random offset. Then all windows of the epoch are shuffled. Epochs follow each
other without a gap, so a batch may hold the end of one and the start of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.data.tokens import TokenDocument


class Batches:
    """Batches of windows out of `documents`; the order depends on `seed` alone, and not on NumPy's version."""

    def __init__(self, documents: Sequence[TokenDocument], length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self._documents = [d.ids for d in documents if len(d.ids) > length]
        self.left_out = len(documents) - len(self._documents)
        if not self._documents:
            longest = max((len(d.ids) for d in documents), default=0)
            raise ValueError(
                f"train.length={length} is longer than any training document"
                f" (longest {longest} tokens; a window takes train.length + 1)"
            )
        targets = np.array([len(ids) - 1 for ids in self._documents])
        windows, self._slack = targets // length, targets % length
        self.windows_per_epoch = int(windows.sum())
        self._document_of = np.repeat(np.arange(len(windows)), windows)
        self._index_in = np.arange(self.windows_per_epoch) - np.repeat(np.cumsum(windows) - windows, windows)
        self._epoch = lru_cache(maxsize=2)(self._cut_and_shuffle)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Token ids [batch_size, length + 1] of training step `step`, counted from 0."""
        out = np.empty((self.batch_size, self.length + 1), dtype=np.int64)
        for row in range(self.batch_size):
            epoch, place = divmod(step * self.batch_size + row, self.windows_per_epoch)
            document, start = self._epoch(epoch)[place]
            out[row] = self._documents[document][start : start + self.length + 1]
        return out

    def _cut_and_shuffle(self, epoch: int) -> NDArray[np.int64]:
        """(document, start) of each window of one epoch, [windows_per_epoch, 2], in the order of training.

        Raw words of PCG64 are used, whose stream NumPy promises to keep; its `Generator` methods make no such promise.
        """
        words = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        offsets = words.random_raw(len(self._documents)) % (self._slack + 1).astype(np.uint64)
        starts = offsets.astype(np.int64)[self._document_of] + self._index_in * self.length
        order = np.argsort(words.random_raw(self.windows_per_epoch), kind="stable")
        return np.stack([self._document_of, starts], axis=1)[order]
