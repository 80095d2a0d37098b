"""Timed rows of a run, brought together over seeds: raw seconds in, medians and percentiles out.

A model's speed does not depend on its seed, so the repeats of all seeds are pooled. What makes a row doubtful, a drift
of its turns or others on its cores, goes along and is told wherever the row is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from harness.measure.drift import drifted
from harness.neighbours import free_cores
from harness.records import Decode, FirstToken, Prefill, Record, TrainStep
from harness.report.collect import Run
from harness.report.formats import Interval, percent
from harness.statistics import Floats

TimedRow = TrainStep | Prefill | FirstToken | Decode
Kind = type[TrainStep] | type[Prefill] | type[FirstToken] | type[Decode]
KINDS: tuple[Kind, ...] = (TrainStep, Prefill, FirstToken, Decode)


@dataclass(frozen=True)
class Timing:
    """All timed repeats of one model at one length or context; `tokens` are those of one repeat.

    `drift` is that of the seed which drifted most; `doubts` say in words why the times are to be distrusted.
    """

    at: int
    batch: int
    tokens: int
    seconds: Floats
    peak_bytes: int | None
    state_bytes: int | None
    joules_per_token: float | None = None
    drift: float | None = None
    doubts: tuple[str, ...] = ()

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


def timings(run: Run, kind: Kind, model: str, batch: int | None = None) -> dict[int, Timing]:
    """The timings of a model by length or context, in rising order, at `batch`; None: each at its smallest batch."""
    groups: dict[tuple[int, int], list[tuple[Record, TimedRow]]] = {}
    for row, values in run.select(kind, model):
        if values.seconds and batch in (None, values.batch):
            groups.setdefault((at_of(values), -values.batch), []).append((row.record, values))
    return {at: _pool(groups[at, size]) for at, size in sorted(groups)}


def batches(run: Run, kind: Kind) -> list[int]:
    """The batch sizes at which models were timed, in rising order."""
    return sorted({values.batch for name in run.models for values in run.values(kind, name) if values.seconds})


def doubtful(run: Run) -> str:
    """A sentence on the timed rows to distrust; '' where there is none."""
    found = [
        f"{name} {kind.kind} at {at}{f' × {batch}' if batch > 1 else ''} ({', '.join(timing.doubts)})"
        for kind in KINDS
        for batch in batches(run, kind)
        for name in run.models
        for at, timing in timings(run, kind, name, batch).items()
        if timing.doubts
    ]
    more = f" and {len(found) - 4} more, in the table of every timing" if len(found) > 5 else ""
    return f"Timings to distrust: {'; '.join(found[: 4 if more else 5])}{more}." if found else ""


def longest_common(found: Mapping[str, dict[int, Timing]]) -> int | None:
    """The longest length or context at which every model that was timed at all was timed."""
    lengths = [set(by_length) for by_length in found.values() if by_length]
    return max(set.intersection(*lengths), default=None) if lengths else None


def at_of(values: TimedRow) -> int:
    """The length or context of a timed row."""
    return values.context if isinstance(values, Decode) else values.length


def _pool(rows: list[tuple[Record, TimedRow]]) -> Timing:
    values = [found for _, found in rows]
    batch, at = values[0].batch, at_of(values[0])
    joules = [found.joules_per_token for found in values if found.joules_per_token is not None]
    drifts = [found.drift for found in values if found.drift is not None]
    return Timing(
        at=at,
        batch=batch,
        tokens=batch if isinstance(values[0], Decode) else batch * at,
        seconds=np.concatenate([np.asarray(found.seconds, dtype=np.float64) for found in values]),
        peak_bytes=_largest(getattr(found, "peak_bytes", None) for found in values),
        state_bytes=_largest(getattr(found, "state_bytes", None) for found in values),
        joules_per_token=float(np.median(joules)) if joules else None,
        drift=max(drifts, key=lambda ratio: abs(np.log(ratio)), default=None),
        doubts=tuple(dict.fromkeys(doubt for row in rows for doubt in _doubts(*row))),
    )


def _doubts(record: Record, values: TimedRow) -> list[str]:
    found = [f"drifts by {percent(values.drift)}"] if drifted(values) and values.drift else []
    others, cores = record.conditions.others_load, record.provenance.get("hardware", {}).get("cores")
    if others is not None and cores and others > free_cores(cores, record.conditions.threads):
        found.append(f"others kept {others:.1f} of {cores} cores busy")
    return found


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
