"""Training batches as a pure function of (seed, step): the same for every model, and resumed by a number.

Each epoch cuts every document into windows of length + 1 tokens that share one token with their neighbour, so each
token is a target once. Windows never cross a document's border; with `data.pack` all documents are cut as if they were
one. What is left over at a document's ends varies: each epoch starts cutting at another pseudo-random offset. Then all
windows of the epoch are shuffled. Epochs follow each other without a gap, so a batch may hold the end of one and the
start of the next.

A corpus of one shard has its epochs listed. Of a larger one no epoch ever is: the place of each window is computed
(`harness.data.windows`), and so is the order (`harness.data.permutation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.data.permutation import drawn, permuted
from harness.data.tokens import TokenDocument, TokenStore
from harness.data.windows import Layout, Stream, Windows


def training_batches(store: TokenStore, length: int, batch_size: int, seed: int) -> TrainingBatches:
    """The batches of a store's training documents; ValueError where no window of `length` fits."""
    if len(store.counts("tokens", "train")) > 1:
        layout = Stream(store, length) if store.pack else Windows(store, length)
        return DrawnBatches(layout, length, batch_size, seed)
    documents: Sequence[TokenDocument] = store.documents("train")
    if store.pack:
        documents = [TokenDocument("", np.concatenate([document.ids for document in documents]))]
    return Batches(documents, length, batch_size, seed)


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


class DrawnBatches:
    """Batches of windows of a `layout`, none of which is kept; they depend on `seed` and step alone."""

    def __init__(self, layout: Layout, length: int, batch_size: int, seed: int) -> None:
        if layout.count < 1:
            raise ValueError(f"train.length={length} is longer than any training document (by a token, at least)")
        self.layout, self.length, self.batch_size, self.seed = layout, length, batch_size, seed
        self.windows_per_epoch = layout.count

    def batch(self, step: int) -> NDArray[np.int64]:
        """Token ids [batch_size, length + 1] of training step `step`, counted from 0."""
        rows = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.uint64)
        epochs, places = np.divmod(rows, np.uint64(self.windows_per_epoch))
        numbers = permuted(places, self.windows_per_epoch, drawn(self.seed, epochs))
        windows = [
            self.layout.window(int(number), self.seed, int(epoch))
            for number, epoch in zip(numbers, epochs, strict=True)
        ]
        return np.stack(windows).astype(np.int64)


TrainingBatches = Batches | DrawnBatches
"""What a training loop asks for the batch of a step."""
