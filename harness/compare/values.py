"""What both runs measured: losses with paired differences, training, and times as ratios.

Two runs are timed one after the other, so a ratio of their times holds the drift of the machine between them as well:
within one run models take turns, between two they cannot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness import statistics
from harness.records import FixedTarget, PositionCurve, Training, Window
from harness.report import formats
from harness.report.collect import Run
from harness.report.contexts import Contexts
from harness.report.curves import Scores, read_scores
from harness.report.formats import Interval
from harness.report.summary import LOG2, at, bits, exponential
from harness.report.tables import Column, Table
from harness.report.timings import KINDS, Kind, at_of
from harness.statistics import Floats

LAST = 0.1
"""Share of the training tokens over which the closing loss is taken."""


@dataclass(frozen=True)
class Loss:
    """Summed NLL and bytes of each document, mean over seeds, both [D]; `data` is the hash of the data."""

    data: str
    documents: list[str]
    bytes: Floats
    nll: Floats

    @property
    def bits(self) -> float:
        """Bits per byte."""
        return float(self.nll.sum() / self.bytes.sum() / LOG2)

    def change(self, after: Loss) -> Interval:
        """Nats per byte of `after` less these, paired over documents; no interval where the documents differ."""
        if self.data != after.data or self.documents != after.documents or not np.array_equal(self.bytes, after.bytes):
            return Interval((after.bits - self.bits) * LOG2, np.nan, np.nan)
        weights = statistics.document_weights(len(self.documents))
        return at(statistics.estimate((after.nll - self.nll)[:, None], self.bytes[:, None], weights), 0)


def quality(a: Run, b: Run) -> Table:
    """Bits per byte under every convention that both runs scored a model by, but for what is exactly equal."""
    rows: list[dict[str, Any]] = []
    equal = 0
    for name in [name for name in a.models + a.floors if name in b.models + b.floors]:
        one, other = losses(a, name), losses(b, name)
        for key in [key for key in one if key in other]:
            nats = one[key].change(other[key])
            if not nats.value:
                equal += 1
                continue
            sure = ("yes" if nats.low > 0 or nats.high < 0 else "no") if np.isfinite(nats.low) else "other documents"
            row = {"model": name, "convention": key, "a": one[key].bits, "b": other[key].bits, "sure": sure}
            rows.append(row | {"change": bits(nats), "ratio": exponential(nats)})
    columns = [
        Column("model", "model", text=True),
        Column("convention", "convention", text=True),
        Column("a", "A", lambda value: f"{value:.4f}"),
        Column("b", "B", lambda value: f"{value:.4f}"),
        Column("change", "B − A", formats.interval),
        Column("ratio", "perplexity, B / A", formats.interval),
        Column("sure", "certain", text=True),
    ]
    caption = (
        "Bits per byte, lower is better; B − A and the ratio of perplexities per byte with 95 % intervals: paired "
        "bootstrap over documents, seeds fixed, mean over seeds; none where the runs scored other documents. Certain: "
        f"the interval leaves out 0.{f' Left out: {equal} that are equal to the last digit.' if equal else ''}"
    )
    return Table("quality", "Losses", caption, columns, rows)


def losses(run: Run, name: str) -> dict[str, Loss]:
    """The losses of a model by what was scored, such as 'position, within 256' or 'fixed_target, context 64'."""
    found: dict[str, list[Loss]] = {}
    data = next((str(row.record.provenance.get("data_hash")) for row in run.rows if row.record.model == name), "")
    for row, values in run.select(PositionCurve, name):
        scores = read_scores(row.folder / values.nll_file)
        found.setdefault("position, all", []).append(_loss(data, scores, None))
        if values.train_length:
            found.setdefault(f"position, within {values.train_length}", []).append(
                _loss(data, scores, values.train_length)
            )
    for row, window in run.select(Window, name):
        key = f"window {window.window}, stride {window.stride}"
        found.setdefault(key, []).append(_loss(data, read_scores(row.folder / window.nll_file), None))
    kept = [row for row in run.rows if row.record.model == name and isinstance(row.record.values, FixedTarget)]
    contexts = Contexts(Run(kept, [], [name], [], [])) if kept else None
    if contexts and contexts.names:
        sums = contexts.sums[name]
        for k, context in enumerate(contexts.edges[:-1]):
            loss = Loss(data, contexts.documents, sums.bytes[:, k], sums.mean[:, k])
            found[f"fixed_target, context {context}"] = [loss]
    return {key: _mean(values) for key, values in found.items()}


def _loss(data: str, scores: Scores, length: int | None) -> Loss:
    last = None if length is None else length - 1
    size, nll = (np.nansum(part[:, :last], axis=1) for part in (scores.scored, scores.nll))
    return Loss(data, scores.documents, size, nll)


def _mean(seeds: Sequence[Loss]) -> Loss:
    return dataclasses.replace(seeds[0], nll=np.mean([loss.nll for loss in seeds], axis=0))


def training(a: Run, b: Run) -> Table:
    """Parameters, closing loss and CPU time of each model's training, mean over seeds."""
    rows = []
    for name in [name for name in a.models if name in b.models]:
        one, other = a.values(Training, name), b.values(Training, name)
        if not one or not other:
            continue
        row: dict[str, Any] = {"model": name}
        for key, found in (("a", one), ("b", other)):
            row[f"parameters_{key}"] = found[0].parameters
            row[f"loss_{key}"] = float(np.mean([closing_loss(values) for values in found]))
            row[f"cpu_{key}"] = float(np.mean([values.cpu_seconds for values in found]))
        rows.append(row | {"ratio": row["cpu_b"] / row["cpu_a"]})
    columns = [
        Column("model", "model", text=True),
        *(Column(f"parameters_{key}", f"parameters, {key.upper()}", lambda v: f"{v:,}") for key in "ab"),
        *(Column(f"loss_{key}", f"loss, {key.upper()}", lambda v: f"{v:.4f}") for key in "ab"),
        *(Column(f"cpu_{key}", f"CPU time, {key.upper()}", formats.seconds) for key in "ab"),
        Column("ratio", "B / A", lambda v: f"{v:.2f}"),
    ]
    caption = "Loss: nats a token over the last tenth of training. CPU time: of the whole training."
    return Table("training", "Training", caption, columns, rows)


def closing_loss(values: Training) -> float:
    """Mean logged loss over the last tenth of the tokens."""
    begin = (1 - LAST) * values.tokens
    last = [loss for seen, loss in zip(values.tokens_seen, values.loss, strict=True) if seen > begin]
    return float(np.mean(last)) if last else float("nan")


def speed(a: Run, b: Run) -> Table:
    """Median time of every shape that both runs timed, and the ratio; peak memory alike."""
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for name in [name for name in a.models if name in b.models]:
            one, other = _pooled(a, kind, name), _pooled(b, kind, name)
            for shape in [shape for shape in one if shape in other]:
                (before, peak_before), (after, peak_after) = one[shape], other[shape]
                row: dict[str, Any] = {"model": name, "kind": kind.kind, "at": f"{shape[0]} × {shape[1]}"}
                row |= {"a": 1e3 * float(np.median(before)), "b": 1e3 * float(np.median(after))}
                row |= {"ratio": ratio_of_medians(before, after)}
                rows.append(row | {"memory": peak_after / peak_before if peak_before and peak_after else None})
    columns = [
        Column("model", "model", text=True),
        Column("kind", "kind", text=True),
        Column("at", "length × batch", text=True),
        Column("a", "ms, A", formats.significant),
        Column("b", "ms, B", formats.significant),
        Column("ratio", "B / A", formats.interval),
        Column("memory", "peak memory, B / A", formats.significant),
    ]
    caption = (
        "Medians of all timed repeats. Interval: rough 95 % of a ratio of medians; it knows nothing of what changed on "
        "the machine between the runs."
    )
    return Table("speed", "Times", caption, columns, rows)


def ratio_of_medians(before: Floats, after: Floats) -> Interval:
    """median(after) / median(before), with the halves of both medians' notches (1.57 · IQR / √n) added in squares.

    (McGill, Tukey and Larsen 1978, as shares of the medians.)
    """
    ratio = float(np.median(after) / np.median(before))
    shares = [1.57 * np.subtract(*np.percentile(s, [75, 25])) / np.sqrt(len(s)) / np.median(s) for s in (before, after)]
    half = ratio * float(np.hypot(*shares))
    return Interval(ratio, ratio - half, ratio + half)


def _pooled(run: Run, kind: Kind, name: str) -> dict[tuple[int, int], tuple[Floats, int | None]]:
    """Seconds of all seeds and the largest peak bytes, by length or context and batch."""
    seconds: dict[tuple[int, int], list[float]] = {}
    peaks: dict[tuple[int, int], int] = {}
    for values in run.values(kind, name):
        shape = (at_of(values), values.batch)
        seconds.setdefault(shape, []).extend(values.seconds)
        peaks[shape] = max(peaks.get(shape, 0), getattr(values, "peak_bytes", None) or 0)
    return {shape: (np.array(found), peaks[shape] or None) for shape, found in seconds.items() if found}
