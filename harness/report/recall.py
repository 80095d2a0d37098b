"""Zero-shot recall in the report: by length, depth and distance, and the length up to which a model still recalls.

The unit of chance is the repeat: a repeat's key and haystack are the same at every length and depth, for every seed
and model. So an interval of a slice is one over repeats, of their means over the slice's cells and over seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness import statistics
from harness.records import TextRecall
from harness.report import formats
from harness.report.collect import Run
from harness.report.summary import LOG2, at
from harness.report.tables import Column, Table
from harness.statistics import FEWEST_DOCUMENTS, Estimate, Floats, Ints

THRESHOLD = 0.85
"""Share of right answers that a model must reach for a length to count as recalled; Hsieh et al. (arXiv 2404.06654)
took a like value, the score of a known model at its own length."""


class Recall:
    """What each model recalls: per task accuracy and gain, each [L, D, R], mean over seeds."""

    def __init__(self, run: Run) -> None:
        found = {name: values for name in run.models if (values := run.values(TextRecall, name))}
        self.models = list(found)
        if not self.models:
            return
        every = [value for values in found.values() for value in values]
        asked = {(tuple(v.nll), tuple(v.lengths), tuple(v.depths), v.repeats) for v in every}
        if len(asked) > 1:
            raise ValueError(
                f"models were asked different questions of recall ({' and '.join(map(str, sorted(asked)))})"
            )
        first = every[0]
        self.tasks, self.repeats = list(first.nll), first.repeats
        self.lengths, self.depths = first.lengths, first.depths
        self.seeds = max(len(values) for values in found.values())
        self.trained = min((v.train_length for v in every if v.train_length is not None), default=None)
        self.distances = {task: np.array(first.distances[task]) for task in self.tasks}
        pairs = [(name, task) for name in found for task in self.tasks]
        self._accuracy = {(n, t): np.mean([_accuracy(v, t) for v in found[n]], axis=0) for n, t in pairs}
        self._gain = {(n, t): np.mean([_gain(v, t) for v in found[n]], axis=0) for n, t in pairs}
        self.weights = statistics.document_weights(self.repeats)

    def accuracy(self, name: str, task: str, slices: Ints) -> Estimate:
        """Share of right answers in each slice [K], with Wilson's interval over repeats; `slices` as in `_means`."""
        share = _means(self._accuracy[name, task], slices).mean(axis=0)
        return Estimate(share, *statistics.wilson(share, self.repeats), np.full(len(share), self.repeats))

    def gain(self, name: str, task: str, slices: Ints) -> Estimate:
        """Bits per byte of the answer that the key in the context saves, in each slice, bootstrapped over repeats."""
        means = _means(self._gain[name, task], slices)
        return statistics.estimate(means, np.ones_like(means), self.weights)

    @property
    def cells(self) -> Ints:
        """Each cell for itself, [L, D]."""
        return np.arange(len(self.lengths) * len(self.depths)).reshape(len(self.lengths), -1)

    @property
    def by_length(self) -> Ints:
        """Slices that are the lengths, [L, D]."""
        return np.repeat(np.arange(len(self.lengths)), len(self.depths)).reshape(len(self.lengths), -1)

    def by_distance(self, task: str) -> tuple[Ints, Floats]:
        """Slices that are octaves of the distance [L, D], and the geometric mean of the distances in each [K]."""
        log = np.log2(self.distances[task])
        _, slices = np.unique(np.floor(log), return_inverse=True)
        middles = np.bincount(slices.ravel(), log.ravel()) / np.bincount(slices.ravel())
        return slices.reshape(log.shape), 2.0**middles

    def effective_length(self, name: str, task: str) -> int | None:
        """The longest length at which, as at all shorter ones, the mean over depths reaches `THRESHOLD`."""
        return self._as_far_as(self.accuracy(name, task, self.by_length).value >= THRESHOLD)

    def gains_up_to(self, name: str, task: str) -> int | None:
        """The longest length at which, as at all shorter ones, the interval of the gain lies above zero."""
        return self._as_far_as(self.gain(name, task, self.by_length).low > 0)

    def _as_far_as(self, holds: np.ndarray) -> int | None:
        count = int(np.logical_and.accumulate(holds).sum())
        return self.lengths[count - 1] if count else None

    def describe(self) -> str:
        """Repeats, seeds and kinds of interval, for a caption."""
        over = "1 seed" if self.seeds == 1 else f"the mean of {self.seeds} seeds"
        kind = "95 % intervals over repeats, seeds fixed: Wilson's of accuracy, bootstrap of the gain"
        if self.repeats < FEWEST_DOCUMENTS:
            kind = f"95 % intervals of accuracy: Wilson's; none of the gain from fewer than {FEWEST_DOCUMENTS} repeats"
        return f"{self.repeats} repeats, each with a key and haystack of its own, {over}; {kind}"


def _accuracy(values: TextRecall, task: str) -> Floats:
    """1 where the whole answer is right, [L, D, R]."""
    return (np.array(values.right[task]) == values.answer_tokens[task]).astype(np.float64)


def _gain(values: TextRecall, task: str) -> Floats:
    """Bits per byte of the answer without the key less those with it, [L, D, R]."""
    return (np.array(values.nll_without[task])[:, None] - np.array(values.nll[task])) / LOG2


def _means(values: Floats, slices: Ints) -> Floats:
    """Mean over the cells of each slice, [R, K], of `values` [L, D, R]; `slices` [L, D] numbers each cell's slice."""
    return np.stack([values[slices == k].mean(axis=0) for k in range(int(slices.max()) + 1)], axis=1)


def recall(recalled: Recall) -> Table | None:
    """One row a model and task: accuracy and gain at the ends of the range, and how far they reach."""
    if not recalled.models:
        return None
    rows = []
    for task in recalled.tasks:
        for name in recalled.models:
            row: dict[str, Any] = {"task": task, "model": name}
            accuracy = recalled.accuracy(name, task, recalled.by_length)
            gain = recalled.gain(name, task, recalled.by_length)
            for end, k in (("shortest", 0), ("longest", -1)):
                row |= {f"accuracy_{end}": at(accuracy, k), f"gain_{end}": at(gain, k)}
            row["effective"] = recalled.effective_length(name, task)
            rows.append(row | {"gains": recalled.gains_up_to(name, task)})
    ends = (("shortest", recalled.lengths[0]), ("longest", recalled.lengths[-1]))
    columns = [
        Column("task", "task", text=True),
        Column("model", "model", text=True),
        *(Column(f"accuracy_{end}", f"accuracy at {length}", formats.interval) for end, length in ends),
        Column("effective", "effective length"),
        *(Column(f"gain_{end}", f"gain at {length}", formats.interval) for end, length in ends),
        Column("gains", "gains up to"),
    ]
    depths = ", ".join(map(str, recalled.depths))
    caption = (
        f"A key hidden in test documents, asked for after so many tokens; mean over depths of {depths} %. Accuracy: "
        "greedy decoding gives the whole answer. Gain: bits per byte of the answer that the key in the context saves "
        "(some of it already for showing the form of an answer). Effective length: the longest at which, as at all "
        f"shorter ones, accuracy is at least {100 * THRESHOLD:.0f} %; gains up to: likewise, the interval of the gain "
        f"lies above zero. {recalled.describe()}."
    )
    return Table("recall", "Recall", caption, columns, rows)


def recall_cells(recalled: Recall) -> Table | None:
    """Every length and depth of every model and task."""
    if not recalled.models:
        return None
    rows: list[dict[str, Any]] = []
    for task in recalled.tasks:
        for name in recalled.models:
            accuracy = recalled.accuracy(name, task, recalled.cells)
            gain = recalled.gain(name, task, recalled.cells)
            for (i, j), k in np.ndenumerate(recalled.cells):
                row = {"task": task, "model": name, "length": recalled.lengths[i], "depth": recalled.depths[j]}
                row |= {"distance": int(recalled.distances[task][i, j])}
                rows.append(row | {"accuracy": at(accuracy, int(k)), "gain": at(gain, int(k))})
    columns = [
        Column("task", "task", text=True),
        Column("model", "model", text=True),
        Column("length", "length"),
        Column("depth", "depth (%)"),
        Column("distance", "distance"),
        Column("accuracy", "accuracy", formats.interval),
        Column("gain", "gain (bits/byte)", formats.interval),
    ]
    caption = f"Distance: tokens from the answer in the key to where it is asked for. {recalled.describe()}."
    return Table("recall-cells", "Recall at every length and depth", caption, columns, rows, folded=True)
