"""The computed order is a permutation for any number of things, another for any key, and looks like no order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.permutation import drawn, mixed, permuted


def order(count: int, seed: int, epoch: int = 0) -> list[int]:
    return permuted(np.arange(count, dtype=np.uint64), count, np.repeat(drawn(seed, epoch), count)).tolist()


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_every_place_is_taken_once(count: int, seed: int) -> None:
    assert sorted(order(count, seed)) == list(range(count))


def test_golden_values() -> None:
    assert order(10, 1) == [7, 0, 9, 4, 1, 6, 3, 2, 5, 8]
    assert mixed(np.array([0x9E3779B97F4A7C15], np.uint64)).tolist() == [0xE220A8397B1DCDAF]  # SplitMix64's first of 0


def test_keys_give_orders_that_have_nothing_in_common() -> None:
    orders = [order(10_000, *key) for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for i, first in enumerate(orders):
        assert abs(np.corrcoef(first, np.arange(10_000))[0, 1]) < 0.04  # 4 standard deviations
        assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.04
        for second in orders[:i]:
            assert sum(a == b for a, b in zip(first, second, strict=True)) < 7  # 1 is expected, Poisson
