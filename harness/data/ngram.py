"""The floor under every model: an interpolated Witten–Bell n-gram over tokens, fitted on the same training text.

A trained network that does not beat it has learned less than counting does. With c(h w) the count of token w after
context h, c(h) its sum over w, T(h) the number of distinct tokens seen after h, and h' the context h without
its oldest token, each order leans on the next shorter one (Witten and Bell 1991, method C, in the interpolated form of
Chen and Goodman 1998, §2.4, equation 14):

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h))

down to the uniform distribution. After a context never seen, p(w | h) = p(w | h'). The name counts the token
itself: order 3, a trigram, sees two tokens of context. Counts do not cross document borders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_ORDER = 5
MOST_TOKENS = 1 << 27
"""Of training text: an order's counts take some 40 bytes a token while they are made."""

Ids = NDArray[np.integer]
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class _Counts:
    """All grams of one order: sorted keys of the distinct ones and of their contexts, with what follows them."""

    grams: Keys
    gram_counts: NDArray[np.float64]
    contexts: Keys
    context_counts: NDArray[np.float64]
    context_types: NDArray[np.float64]


class NGram:
    """An n-gram model of a fixed order; make one with `fit`."""

    def __init__(self, orders: Sequence[_Counts], vocab_size: int) -> None:
        self._orders = orders
        self.order = len(orders)
        self.vocab_size = vocab_size

    @classmethod
    def fit(cls, documents_ids: Iterable[Ids], order: int, vocab_size: int = 256) -> NGram:
        """Count all grams of 1 … `order` tokens in the documents, each an array of token ids [n]."""
        check_order(order, vocab_size)
        documents = list(documents_ids)
        return cls([_count(documents, k, vocab_size) for k in range(1, order + 1)], vocab_size)

    def score(self, ids: Ids) -> NDArray[np.float32]:
        """Negative log-likelihood in nats [L - 1] of tokens 1 … L - 1 of one document `ids` [L].

        Token i + 1 is predicted from the up to order - 1 tokens before it.
        """
        p = np.full(len(ids), 1 / self.vocab_size)
        for k, counts in enumerate(self._orders, start=1):
            grams = _keys(ids, k, self.vocab_size)
            contexts = grams // np.uint64(self.vocab_size)
            c_gram = _look_up(counts.grams, grams, counts.gram_counts)
            c = _look_up(counts.contexts, contexts, counts.context_counts)
            types = _look_up(counts.contexts, contexts, counts.context_types)
            shorter = p[k - 1 :]
            p[k - 1 :] = np.where(c > 0, (c_gram + types * shorter) / np.maximum(c + types, 1), shorter)
        return (-np.log(p[1:])).astype(np.float32)


def check_order(order: int, vocab_size: int) -> None:
    """ValueError for an order that cannot be counted."""
    if not 1 <= order <= MAX_ORDER:
        raise ValueError(f"the order of an n-gram is {order}: must lie between 1 and {MAX_ORDER}")
    if vocab_size**order > 2**64:
        raise ValueError(
            f"measure.ngrams: an n-gram of order {order} over {vocab_size} tokens does not fit a 64-bit key;"
            " choose lower orders"
        )


def _keys(ids: Ids, k: int, vocab_size: int) -> Keys:
    """Each run of `k` tokens of `ids` [L] as one number in base `vocab_size`, oldest token first: [L - k + 1]."""
    count = max(len(ids) - k + 1, 0)
    keys = np.zeros(count, dtype=np.uint64)
    for j in range(k):
        keys = keys * np.uint64(vocab_size) + ids[j : j + count].astype(np.uint64)
    return keys


def _count(documents: Sequence[Ids], k: int, vocab_size: int) -> _Counts:
    """Counts of all `k`-grams. A gram's context is its key without the last digit, so both are sorted at once."""
    every = np.concatenate([_keys(ids, k, vocab_size) for ids in documents])
    grams, counts = np.unique(every, return_counts=True)
    contexts, first, types = np.unique(grams // np.uint64(vocab_size), return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, first) if len(first) else counts
    return _Counts(grams, counts.astype(float), contexts, totals.astype(float), types.astype(float))


def _look_up(keys: Keys, wanted: Keys, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value of each `wanted` key, 0 for those not among the sorted `keys`."""
    if not len(keys):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0.0)
