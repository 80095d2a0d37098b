"""Whether the machine stayed the same from the first timed turn to the last.

A machine that heats up, or gains a neighbour, shows as a trend over the turns. Turns that alternate spread it over all
models alike, and percentiles hide it; so every timed row says how far its turns drifted. A row is marked where the
drift is both large and more than noise: large, if the median turn of the last third is more than a tenth longer or
shorter than that of the first third; more than noise, if at most one in twenty orders of the same turns has so clear a
trend (Mann 1945). Either alone would mislead: the first marks a few noisy turns, the second many turns that drift by
next to nothing. Fewer than five turns cannot pass the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from harness.records import Timed

BOUND = 1.1
"""The last third over the first, or the first over the last, beyond which a drift counts as large."""
CERTAINTY = 0.05
"""The probability by chance up to which a trend counts as more than noise."""
EXACT = 40
"""So many turns have their orders counted; more are near enough to a normal distribution."""


def drift(turns: Sequence[float]) -> float | None:
    """The median of the last third of the turns' seconds over that of the first third; None for less than three."""
    third = len(turns) // 3
    if not third:
        return None
    return float(np.median(turns[-third:]) / np.median(turns[:third]))


def trend_p(turns: Sequence[float]) -> float | None:
    """Probability that a random order of the turns rises or falls as clearly as this one; None for less than three.

    Mann's statistic counts the pairs of turns that rise less those that fall. Among the orders of n different times,
    those with k falling pairs are as many as 1 · (1 + x) · (1 + x + x²) …, multiplied out, has at x^k (Knuth, 5.1.1).
    """
    n = len(turns)
    if n < 3:
        return None
    times = np.asarray(turns)
    clear = abs(int(np.sign(times[None, :] - times[:, None])[np.triu_indices(n, 1)].sum()))
    if n > EXACT:
        deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
        return math.erfc(max(clear - 1, 0) / deviation / math.sqrt(2))
    orders = np.ones(1)
    for size in range(2, n + 1):
        orders = np.convolve(orders, np.full(size, 1 / size))
    pairs = n * (n - 1) // 2
    return min(1.0, float(orders[np.abs(pairs - 2 * np.arange(pairs + 1)) >= clear].sum()))


def drifted(values: Timed) -> bool:
    """Whether a timed row is to be marked."""
    if values.drift is None or values.trend_p is None:
        return False
    return max(values.drift, 1 / values.drift) > BOUND and values.trend_p <= CERTAINTY
