"""Perplexity against context with intervals: NLL per document × position in, estimates with 95 % intervals out.

The unit of chance is the document: tokens of one document hang together, so resampling tokens would give bands many
times too narrow. One draw of document weights serves every model and every seed. What is common to all of them (a
document that is hard for everyone) then cancels in a difference, which is what makes a small difference visible.
Documents × seeds is a crossed design, so seeds are not resampled inside documents: with a handful of seeds the
interval is that of the documents with the seeds fixed (the mean over seeds), and the spread over seeds is a
t-interval of its own (`seed_interval`).

Everything is linear in the summed NLL. Log-perplexity is a ratio of sums, Σ nll / Σ units: never a mean of
per-document or per-window means, which would be another quantity. So the mean over seeds, the bits per byte and the
difference of two models are all the same function, `estimate`, of other sums.

This is numpy alone; `scipy.stats.bootstrap` is the oracle in the tests.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DRAWS = 4000
SEED = 20_240_705
LEVEL = 0.95
FEWEST_DOCUMENTS = 5  # a bootstrap over fewer has hardly any distinct draws to speak of: no interval is given


def buckets(max_length: int, start: int = 16, per_octave: int = 2) -> Ints:
    """Log-spaced edges [K + 1] of contexts: bucket k holds the targets with edges[k] <= context < edges[k + 1].

    The context length of target i (token i of a document, counted from 0) is the i tokens before it, so a document of
    `max_length` tokens has contexts 1 … max_length - 1. Every start · 2^m is an edge; a rest that would be less than
    half a bucket wide joins the one before it.
    """
    if max_length <= start:
        raise ValueError(f"max_length must exceed start={start} for a curve, got {max_length}")
    count = math.ceil(math.log2(max_length / start) * per_octave)
    edges = sorted({round(start * 2 ** (k / per_octave)) for k in range(count)})
    while len(edges) > 1 and max_length < edges[-1] * 2 ** (0.5 / per_octave):
        edges.pop()
    return np.array([*edges, max_length], dtype=np.int64)


def bucket_sums(values: NDArray[np.floating] | NDArray[np.integer], lengths: Ints, edges: Ints) -> Floats:
    """Sum of `values` [D, P] over each bucket: [D, K] in float64; column j belongs to context j + 1.

    Row d counts up to column lengths[d]. What lies beyond (NaN, by habit) is past the document's end; a NaN before
    it is the model's own and makes its bucket NaN, for a NaN that is averaged away is a fault that nobody sees.
    """
    inside = np.arange(values.shape[1]) < lengths[:, None]
    kept = np.where(inside, values, 0).astype(np.float64)
    return np.stack([kept[:, low - 1 : high - 1].sum(axis=1) for low, high in itertools.pairwise(edges)], axis=1)


def document_weights(documents: int, draws: int = DRAWS, seed: int = SEED) -> Floats:
    """How often each document stands in each bootstrap draw: [B, D], rows sum to D. Same arguments, same draw."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.multinomial(documents, np.full(documents, 1 / documents), size=draws).astype(np.float64)


@dataclass(frozen=True)
class Estimate:
    """Nats per unit in each bucket [K] with the interval over documents, and the documents that reach the bucket."""

    value: Floats
    low: Floats
    high: Floats
    documents: Ints


def estimate(nll: Floats, units: Floats, weights: Floats, level: float = LEVEL) -> Estimate:
    """Σ nll / Σ units for sums [D, K], with the percentile bootstrap over documents under `weights` [B, D].

    Give the mean over seeds as `nll` for a model, the difference of two such means for a paired difference; `units`
    are tokens or bytes. The percentiles are widened for few documents (`tail_area`). A bucket that nothing reaches
    is NaN; one that fewer than five documents reach has a value and no interval.
    """
    documents = np.count_nonzero(units > 0, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = nll.sum(axis=0) / units.sum(axis=0)
        replicates = (weights @ nll) / (weights @ units)
    low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
    for k in np.flatnonzero(np.isfinite(value) & (documents >= FEWEST_DOCUMENTS)):
        tail = tail_area(int(documents[k]), level)
        low[k], high[k] = np.nanquantile(replicates[:, k], [tail, 1 - tail])
    return Estimate(value, low, high, documents)


def p_values(nll: Floats, units: Floats, weights: Floats) -> Floats:
    """Two-sided p [K] of "Σ nll / Σ units is zero" for a paired difference, under the same draws as `estimate`.

    Student's t with one degree of freedom less than documents, the standard error being that of the bootstrap, with n
    in its divisor made n - 1. Unlike a share of draws it tells small p apart, which a correction for many comparisons
    needs. NaN where there is no interval.
    """
    documents = np.count_nonzero(units > 0, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = nll.sum(axis=0) / units.sum(axis=0)
        error = np.nanstd((weights @ nll) / (weights @ units), axis=0) * np.sqrt(documents / (documents - 1))
    found = np.full_like(value, np.nan)
    for k in np.flatnonzero(np.isfinite(value) & (error > 0) & (documents >= FEWEST_DOCUMENTS)):
        df = int(documents[k]) - 1
        found[k] = 1 - _t_central(math.atan(abs(value[k]) / error[k] / math.sqrt(df)), df)
    return found


def holm(p: Floats) -> Floats:
    """The p of a family of tests such that rejecting all below α errs anywhere with probability at most α (Holm 1979).

    NaN stays NaN and does not count as a test.
    """
    order = np.argsort(p)  # NaN last
    tests = int(np.count_nonzero(~np.isnan(p)))
    adjusted = np.full_like(p, np.nan)
    steps = p[order[:tests]] * np.arange(tests, 0, -1)
    adjusted[order[:tests]] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def wilson(share: Floats, trials: int, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Ends of the interval of a probability when a `share` of `trials` succeeded: not empty at a share of 0 or 1.

    With z = Φ⁻¹((1 + level) / 2), (p + z²/2n ± z √(p (1 - p) / n + z²/4n²)) / (1 + z²/n) (Wilson 1927).
    """
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2 / trials
    middle, half = share + z2 / 2, np.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return np.maximum((middle - half) / (1 + z2), 0.0), np.minimum((middle + half) / (1 + z2), 1.0)


@functools.cache
def tail_area(documents: int, level: float = LEVEL) -> float:
    """Percentile at which to cut each tail: Φ(-√(n / (n - 1)) t), a little less than (1 - level) / 2 for small n.

    The plain percentile interval divides by n and knows no t, hence is too narrow for few documents; this is the
    'expanded percentile' of Hesterberg, What Teachers Should Know About the Bootstrap (2015), section 5.
    """
    t = t_quantile((1 + level) / 2, documents - 1)
    return NormalDist().cdf(-math.sqrt(documents / (documents - 1)) * t)


def seed_interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Student's t-interval of the mean over seeds, for `values` [S]: what another seed might have given."""
    if len(values) < 2:
        return math.nan, math.nan
    half = t_quantile((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def median_interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The sign test's interval of a median: two order statistics of `values` [n] that hold it at `level` at least.

    Nothing is assumed of the distribution. Below the k-th smallest value lies the median with the chance that fewer
    than k of n fair coins show heads; k is the largest whose two tails leave `level`. NaN for fewer than six values.
    """
    n = len(values)
    tails = np.cumsum([math.comb(n, k) / 2**n for k in range(n + 1)])
    k = int(np.count_nonzero(2 * tails <= 1 - level))
    if not k:
        return math.nan, math.nan
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[n - k])


def t_quantile(probability: float, df: int) -> float:
    """Quantile (probability >= 0.5) of Student's t with integer `df`, by bisection on its distribution function."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if 0.5 + _t_central(angle, df) / 2 < probability else (low, angle)
    return math.sqrt(df) * math.tan(low)


def _t_central(angle: float, df: int) -> float:
    """P(|T| < t) where t = √df · tan(angle): the finite series of Abramowitz and Stegun 26.7.3 (odd), 26.7.4 (even)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    k = np.arange(1, (df - 1) // 2 if df % 2 else df // 2)
    if df == 1:
        return 2 * angle / math.pi
    if df % 2:
        series = cosine * (1 + np.cumprod(2 * k / (2 * k + 1) * cosine**2).sum())
        return float(2 / math.pi * (angle + sine * series))
    return float(sine * (1 + np.cumprod((2 * k - 1) / (2 * k) * cosine**2).sum()))
