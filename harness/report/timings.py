"""Timed rows of a run, brought together over seeds: raw seconds in, medians and percentiles out.

A model's speed does not depend on its seed, so the repeats of all seeds are pooled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from harness.records import Decode, Prefill, TrainStep
from harness.report.collect import Run
from harness.report.formats import Interval
from harness.statistics import Floats


@dataclass(frozen=True)
class Timing:
    """All timed repeats of one model at one length or context; `tokens` are those of one repeat."""

    at: int
    batch: int
    tokens: int
    seconds: Floats
    peak_bytes: int | None
    state_bytes: int | None

    def milliseconds(self, percentile: float) -> float:
        """Percentile of the repeats, in milliseconds."""
        return float(np.percentile(self.seconds, percentile)) * 1e3

    def throughput(self, percentile: float = 50) -> float:
        """Tokens a second, at a percentile of the repeats' seconds."""
        return self.tokens / float(np.percentile(self.seconds, percentile))

    @property
    def median_throughput(self) -> Interval:
        """Tokens a second at the median, with the rough 95 % interval of a median: 1.57 · IQR / √n on each side.

        (McGill, Tukey and Larsen 1978, the notch of a box plot.) It only decides how many digits are shown.
        """
        low, high = np.percentile(self.seconds, [25, 75])
        half = 1.57 * (high - low) / np.sqrt(len(self.seconds)) / np.median(self.seconds) * self.throughput()
        return Interval(self.throughput(), self.throughput() - float(half), self.throughput() + float(half))


def timings(run: Run, kind: type[TrainStep] | type[Prefill] | type[Decode], model: str) -> dict[int, Timing]:
    """The timings of a model by length or context, in rising order; of several batch sizes the smallest."""
    groups: dict[tuple[int, int], list[TrainStep | Prefill | Decode]] = {}
    for values in run.values(kind, model):
        if values.seconds:
            groups.setdefault((at_of(values), -values.batch), []).append(values)
    return {at: _pool(groups[at, batch]) for at, batch in sorted(groups)}


def longest_common(found: Mapping[str, dict[int, Timing]]) -> int | None:
    """The longest length or context at which every model that was timed at all was timed."""
    lengths = [set(by_length) for by_length in found.values() if by_length]
    return max(set.intersection(*lengths), default=None) if lengths else None


def at_of(values: TrainStep | Prefill | Decode) -> int:
    """The length or context of a timed row."""
    return values.context if isinstance(values, Decode) else values.length


def _pool(rows: list[TrainStep | Prefill | Decode]) -> Timing:
    first = rows[0]
    return Timing(
        at=at_of(first),
        batch=first.batch,
        tokens=first.batch if isinstance(first, Decode) else first.batch * first.length,
        seconds=np.concatenate([np.asarray(row.seconds, dtype=np.float64) for row in rows]),
        peak_bytes=_largest(row.peak_bytes for row in rows if isinstance(row, TrainStep | Prefill)),
        state_bytes=_largest(row.state_bytes for row in rows if isinstance(row, Prefill | Decode)),
    )


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
