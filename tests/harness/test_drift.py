"""Drift of the turns: what is marked, what is noise, and the exact probability of a trend."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import kendalltau

from harness.measure.drift import drift, drifted, trend_p
from harness.records import Prefill, Timed


def timed(turns: list[float]) -> Timed:
    return Prefill(1, 1, turns, None, 0, 0, turns=len(turns), drift=drift(turns), trend_p=trend_p(turns))


def test_drift_is_the_last_third_over_the_first() -> None:
    assert drift([1, 9, 1, 5, 5, 5, 2, 2, 9]) == 2
    assert drift([1.0, 2.0, 3.0, 4.0, 8.0]) == 8
    assert drift([1.0, 2.0]) is None


@pytest.mark.parametrize("turns", [[1, 2, 3, 4, 5], [2, 1, 3, 4, 5], [5, 3, 4, 2, 1], [3, 1, 5, 2, 4]])
def test_the_probability_of_a_trend_counts_the_orders(turns: list[float]) -> None:
    def clear(order: tuple[float, ...]) -> int:
        return abs(sum(int(np.sign(b - a)) for i, a in enumerate(order) for b in order[i + 1 :]))

    orders = list(permutations(turns))
    assert trend_p(turns) == pytest.approx(sum(clear(order) >= clear(tuple(turns)) for order in orders) / len(orders))


@pytest.mark.parametrize(
    ("count", "method", "tolerance"), [(12, "exact", 1e-9), (35, "exact", 1e-9), (80, "asymptotic", 0.02)]
)
def test_it_is_that_of_kendalls_test_against_time(count: int, method: str, tolerance: float) -> None:
    for seed in range(5):
        turns = np.random.default_rng(seed).gamma(9, size=count) + 0.1 * np.arange(count)
        assert trend_p(turns.tolist()) == pytest.approx(
            kendalltau(np.arange(count), turns, method=method).pvalue, rel=tolerance, abs=tolerance / 10
        )


def test_a_machine_that_slows_down_is_marked_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    noise = 1 + 0.05 * generator.standard_normal((400, 9))
    slowing = noise * np.linspace(1, 1.4, 9)
    assert np.mean([drifted(timed(turns)) for turns in slowing.tolist()]) > 0.95
    assert np.mean([drifted(timed(turns)) for turns in slowing[:, ::-1].tolist()]) > 0.95
    assert np.mean([drifted(timed(turns)) for turns in noise.tolist()]) < 0.02


def test_a_small_drift_is_not_marked_however_certain_nor_a_large_one_of_few_turns() -> None:
    assert not drifted(timed(np.linspace(1, 1.08, 60).tolist()))
    assert drifted(timed(np.linspace(1, 1.3, 60).tolist()))
    assert not drifted(timed([1.0, 2.0, 3.0, 4.0]))
    assert drifted(timed([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert not drifted(timed([1.0]))
