"""The `position` curves of a run: the NLL files read once, summed into context buckets, resampled over documents.

Everything is per byte. A model with a tokenizer of its own gives a loss a token, which is spread evenly over the bytes
of the token: sums over a document stay exact, and contexts are counted in bytes for every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from harness import statistics
from harness.records import PositionCurve
from harness.report.collect import Run
from harness.report.paired import Paired, Sums
from harness.statistics import Estimate, Floats, Ints


@dataclass(frozen=True)
class Scores:
    """NLL of documents [D] by position [P] in nats a byte, column j that of byte j + 1; NaN past a document's end."""

    documents: list[str]
    lengths: Ints  # [D] bytes up to the last that is scored, less the first
    nll: Floats  # [D, P]
    scored: Floats  # [D, P], 1 or, for what a first token of several bytes hides, 0

    def sums(self, edges: Ints, train_length: int | None) -> tuple[Sums, Floats]:
        """Bytes in the buckets between `edges` and, as last column, the whole document; the NLL alike."""
        whole = np.array([1, self.nll.shape[1] + 1])
        size, nll = (
            np.hstack([statistics.bucket_sums(part, self.lengths, borders) for borders in (edges, whole)])
            for part in (self.scored, self.nll)
        )
        return Sums(size, size, train_length=train_length), nll


def read_scores(path: Path, column: str = "nll") -> Scores:
    """Read an NLL file (see `PositionCurve`), its documents in the order of their names; `column` holds the NLL."""
    if not path.exists():
        raise ValueError(f"{path} is missing: the NLL files named in records.jsonl belong to the run folder")
    table = pq.read_table(path).sort_by("document")
    columns = [[row.values.to_numpy() for row in table[name]] for name in (column, "target_bytes")]
    first = table["first_bytes"].to_pylist() if "first_bytes" in table.column_names else [1] * len(table)
    rows = [_over_bytes(*row) for row in zip(*columns, first, strict=True)]
    lengths = np.array([len(nll) for nll, _ in rows], dtype=np.int64)
    inside = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
    nll, scored = np.full(inside.shape, np.nan), np.full(inside.shape, np.nan)
    if rows:
        nll[inside], scored[inside] = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return Scores(table["document"].to_pylist(), lengths, nll, scored)


def _over_bytes(nll: Floats, sizes: Ints, first: int) -> tuple[Floats, Floats]:
    """Nats of each byte from the second on, and which of them are scored, where `first` bytes come before the targets.

    A token without bytes is a part of a character: its loss belongs to the token that ends the character.
    """
    ends = np.flatnonzero(sizes)
    if not len(ends):
        return np.zeros(0), np.zeros(0)
    token = np.add.reduceat(nll.astype(np.float64), np.r_[0, ends[:-1] + 1])
    each = np.repeat(token / sizes[ends], sizes[ends])[max(0, 1 - first) :]
    before = np.zeros(max(0, first - 1))
    return np.r_[before, each], np.r_[before, np.ones_like(each)]


@dataclass
class Within:
    """One model: sums over all positions inside the comparison's training length, the same for every model."""

    bytes: Floats  # [D, 1]
    nll: dict[int, Floats]  # by seed, each [D, 1]

    @property
    def mean(self) -> Floats:
        """NLL, mean over seeds, [D, 1]."""
        return np.mean(list(self.nll.values()), axis=0)


class Curves(Paired):
    """Perplexity against context under `position`: K buckets, and as column K + 1 the whole document."""

    convention = PositionCurve.convention

    def __init__(self, run: Run, per_octave: int = 2) -> None:
        super().__init__()
        rows = {name: run.select(PositionCurve, name) for name in run.models + run.floors}
        self.names = [name for name, found in rows.items() if found]
        self.within: dict[str, Within] = {}
        if not self.names:
            return
        self.edges = statistics.buckets(
            max(v.max_length for n in self.names for _, v in rows[n]), per_octave=per_octave
        )
        lengths = [v.train_length for n in self.names for _, v in rows[n] if v.train_length is not None]
        self.trained: int | None = min(lengths, default=None)
        for name in self.names:
            for row, values in rows[name]:
                self._add(name, row.record.seed, values, read_scores(row.folder / values.nll_file))
        self.draw()

    def _add(self, name: str, seed: int, values: PositionCurve, scores: Scores) -> None:
        sums, nll = scores.sums(self.edges, values.train_length)
        self.add(name, seed, scores.documents, sums, nll)
        inside = np.array([1, self.trained or 1])
        bytes_within, nll_within = (
            statistics.bucket_sums(part, scores.lengths, inside) for part in (scores.scored, scores.nll)
        )
        self.within.setdefault(name, Within(bytes_within, {})).nll[seed] = nll_within

    def nats_per_byte(self, name: str) -> Estimate:
        """Nats per byte over all scored bytes, [1]; divide by log 2 for bits."""
        sums = self.sums[name]
        return statistics.estimate(sums.mean[:, -1:], sums.bytes[:, -1:], self.weights)

    def nats_per_byte_within(self, name: str, reference: str | None = None) -> Estimate:
        """Nats per byte inside the training length, [1]; with a `reference`, less that of it, paired over documents."""
        nll = self.within[name].mean
        if reference is not None:
            same = (self.within[name].bytes == self.within[reference].bytes).all(axis=0)
            nll = np.where(same, nll - self.within[reference].mean, np.nan)
        return statistics.estimate(nll, self.within[name].bytes, self.weights)

    def seed_nats_per_byte(self, name: str) -> Floats:
        """Each seed's nats per byte over all scored bytes, [S]."""
        sums = self.sums[name]
        return np.array([nll[:, -1].sum() / sums.bytes[:, -1].sum() for nll in sums.nll.values()])

    def bucket_of(self, context: int) -> int | None:
        """The bucket that begins at `context` or holds it; None beyond the curve."""
        k = int(np.searchsorted(self.edges, context, side="right")) - 1
        return k if 0 <= k < len(self.edges) - 1 else None

    def bucket_within(self, length: int | None) -> int | None:
        """The last shown bucket that lies wholly within contexts below `length`: the end of what was trained."""
        fits = [int(k) for k in self.shown if length is not None and self.edges[k + 1] <= length]
        return fits[-1] if fits else None

    def span(self, k: int) -> str:
        """The contexts of bucket k, such as '181–255'."""
        low, high = int(self.edges[k]), int(self.edges[k + 1]) - 1
        return f"{low}–{high}" if high > low else str(low)
