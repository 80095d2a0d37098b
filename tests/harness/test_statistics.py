"""The statistics against hand computation, scipy, and simulated data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness.statistics import (
    bucket_sums,
    buckets,
    document_weights,
    estimate,
    holm,
    p_values,
    seed_interval,
    t_quantile,
    tail_area,
)


def test_buckets_start_at_16_and_have_powers_of_two_among_their_edges() -> None:
    assert buckets(128).tolist() == [16, 23, 32, 45, 64, 91, 128]
    assert buckets(256, per_octave=1).tolist() == [16, 32, 64, 128, 256]
    assert buckets(60, start=8, per_octave=1).tolist() == [8, 16, 32, 60]


def test_a_short_rest_joins_the_last_bucket() -> None:
    assert buckets(2100).tolist()[-2:] == [1448, 2100]
    assert buckets(2600).tolist()[-3:] == [1448, 2048, 2600]
    assert buckets(17).tolist() == [16, 17]


def test_a_curve_needs_more_than_its_first_context() -> None:
    with pytest.raises(ValueError, match="max_length must exceed start=16 for a curve, got 16"):
        buckets(16)


def test_context_i_is_column_i_minus_one_and_nothing_counts_beyond_the_end() -> None:
    nll = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 20.0, 30.0, np.nan, np.nan]])
    lengths, edges = np.array([5, 3]), np.array([1, 2, 4, 6])
    assert bucket_sums(nll, lengths, edges).tolist() == [[1.0, 5.0, 9.0], [10.0, 50.0, 0.0]]
    assert bucket_sums(np.ones_like(nll), lengths, edges).tolist() == [[1, 2, 2], [1, 2, 0]]


def test_a_nan_inside_a_document_is_not_averaged_away() -> None:
    nll = np.array([[1.0, np.nan, 3.0, 4.0]] * 8)
    sums = bucket_sums(nll, np.full(8, 4), np.array([1, 3, 5]))
    assert np.isnan(sums[:, 0]).all()
    found = estimate(sums, np.full((8, 2), 2.0), document_weights(8, 50))
    assert np.isnan([found.value[0], found.low[0], found.high[0]]).all()
    assert found.value[1] == 3.5


def test_sums_of_float32_are_taken_in_float64() -> None:
    nll = np.full((1, 200_000), 0.1, dtype=np.float32)
    total = bucket_sums(nll, np.array([200_000]), np.array([1, 200_001]))
    assert total[0, 0] == pytest.approx(float(np.float32(0.1)) * 200_000, rel=1e-12)


def test_estimate_is_the_ratio_of_sums_not_the_mean_of_ratios() -> None:
    nll, units = np.array([[1.0], [30.0]]), np.array([[1.0], [10.0]])
    found = estimate(nll, units, document_weights(2, 10))
    assert found.value.tolist() == [31 / 11]
    assert found.documents.tolist() == [2]


def test_no_interval_from_fewer_than_five_documents() -> None:
    units = np.ones((6, 2))
    units[4:, 1] = 0
    found = estimate(np.arange(12.0).reshape(6, 2) * units, units, document_weights(6, 500))
    assert found.documents.tolist() == [6, 4]
    assert found.low[0] < found.value[0] < found.high[0]
    assert math.isnan(found.low[1])
    assert math.isfinite(found.value[1])


def test_one_draw_of_documents_is_the_same_every_time() -> None:
    weights = document_weights(30)
    assert np.array_equal(weights, document_weights(30))
    assert (weights.sum(axis=1) == 30).all()
    assert not np.array_equal(weights[0], weights[1])


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 10, 29, 30, 499])
def test_t_quantile_equals_scipy(df: int) -> None:
    for probability in (0.6, 0.9, 0.975, 0.995):
        assert t_quantile(probability, df) == pytest.approx(stats.t.ppf(probability, df), rel=1e-9)


def test_seed_interval_equals_scipy() -> None:
    values = np.array([2.1, 2.3, 2.15])
    wanted = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert seed_interval(values) == pytest.approx(wanted, rel=1e-9)
    assert all(map(math.isnan, seed_interval(values[:1])))


def test_tails_widen_for_few_documents_as_hesterberg_says() -> None:
    assert tail_area(28) == pytest.approx(stats.norm.cdf(-math.sqrt(28 / 27) * stats.t.ppf(0.975, 27)), rel=1e-9)
    assert tail_area(28) < 0.02
    assert tail_area(100_000) == pytest.approx(0.025, rel=1e-3)


def _documents(rng: np.random.Generator, count: int, runs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums [count, runs] of two models over documents of uneven length and shared difficulty, and their tokens.

    The truth is 2.0 nats a token for the first and 1.9 for the second. Each column is a data set of its own.
    """
    tokens = np.minimum(np.round(rng.lognormal(5, 0.8, (count, runs))) + 1, 600)
    difficulty = rng.gamma(9, 1 / 9, (count, runs))
    first = tokens * (2.0 * difficulty + rng.normal(0, 0.3, (count, runs)))
    return first, tokens * (1.9 * difficulty + rng.normal(0, 0.3, (count, runs))), tokens


def test_interval_equals_scipys_bootstrap() -> None:
    nll, _, tokens = _documents(np.random.default_rng(5), 60, 1)
    found = estimate(nll, tokens, document_weights(60, 20_000))
    oracle = stats.bootstrap(
        (nll[:, 0], tokens[:, 0]), lambda x, n, axis: x.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=20_000, confidence_level=1 - 2 * tail_area(60), rng=np.random.default_rng(6),
    ).confidence_interval  # fmt: skip
    width = oracle.high - oracle.low
    assert abs(found.low[0] - oracle.low) < 0.02 * width
    assert abs(found.high[0] - oracle.high) < 0.02 * width


@pytest.fixture(scope="module")
def coverage() -> tuple[float, float]:
    """Share of 2,000 simulations of 120 documents whose interval holds the truth: one curve, a paired difference."""
    hits = []
    for batch in range(4):
        first, second, tokens = _documents(np.random.default_rng(batch), 120, 500)
        weights = document_weights(120, 2000, seed=batch)
        one, two = estimate(first, tokens, weights), estimate(second - first, tokens, weights)
        hits.append(((one.low < 2.0) & (one.high > 2.0), (two.low < -0.1) & (two.high > -0.1)))
    shares = np.mean(hits, axis=(0, 2))
    return float(shares[0]), float(shares[1])


def test_coverage_of_a_curve_is_nominal(coverage: tuple[float, float]) -> None:
    assert 0.93 <= coverage[0] <= 0.97


def test_coverage_of_a_paired_difference_is_nominal(coverage: tuple[float, float]) -> None:
    assert 0.93 <= coverage[1] <= 0.97


def test_a_paired_difference_is_far_narrower_than_an_unpaired_one() -> None:
    first, second, tokens = _documents(np.random.default_rng(9), 100, 20)
    paired = estimate(second - first, tokens, document_weights(100))
    ones = estimate(first, tokens, document_weights(100))
    twos = estimate(second, tokens, document_weights(100))
    unpaired = np.hypot(ones.high - ones.low, twos.high - twos.low)
    assert (paired.high - paired.low < 0.8 * unpaired).all()


def test_p_values_are_those_of_a_t_test_where_all_documents_are_equally_long() -> None:
    rng = np.random.default_rng(3)
    shift = np.array([0.0, 0.1, 0.25])
    nll = rng.normal(shift, 1.0, (60, 3)) * 50
    found = p_values(nll, np.full((60, 3), 50.0), document_weights(60, 40_000))
    np.testing.assert_allclose(found, stats.ttest_1samp(nll, 0).pvalue, rtol=0.05)


def test_p_values_are_even_where_there_is_no_difference() -> None:
    first, second, tokens = _documents(np.random.default_rng(11), 60, 1500)
    found = p_values(second - first + 0.1 * tokens, tokens, document_weights(60, 1000))
    assert 0.035 < np.mean(found < 0.05) < 0.07
    assert 0.46 < np.mean(found < 0.5) < 0.54


def test_p_needs_documents_and_a_spread() -> None:
    assert np.isnan(p_values(np.ones((4, 1)), np.ones((4, 1)), document_weights(4))).all()
    assert np.isnan(p_values(np.ones((9, 1)), np.ones((9, 1)), document_weights(9))).all()


def test_holm_corrects_as_in_his_example_and_passes_over_nan() -> None:
    found = holm(np.array([0.01, np.nan, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(found, [0.03, np.nan, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]
