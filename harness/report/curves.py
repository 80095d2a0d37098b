"""Perplexity curves of a run: the NLL files read once, summed into context buckets, resampled over documents.

Only the sums of each document and bucket stay in memory, so one model's NLL is held at a time. All models and seeds
must have scored the same documents, for the intervals are paired: one draw of documents serves them all.

Everything is per byte. A model with a tokenizer of its own gives a loss a token, which is spread evenly over the bytes
of the token: sums over a document stay exact, and contexts are counted in bytes for every model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from harness import statistics
from harness.records import PositionCurve
from harness.report.collect import Run
from harness.statistics import Estimate, Floats, Ints


@dataclass(frozen=True)
class Scores:
    """NLL of documents [D] by position [P] in nats a byte, column j that of byte j + 1; NaN past a document's end."""

    documents: list[str]
    lengths: Ints  # [D] bytes up to the last that is scored, less the first
    nll: Floats  # [D, P]
    scored: Floats  # [D, P], 1 or, for what a first token of several bytes hides, 0


def read_scores(path: Path) -> Scores:
    """Read an NLL file (see `PositionCurve`), its documents in the order of their names."""
    if not path.exists():
        raise ValueError(f"{path} is missing: the NLL files named in records.jsonl belong to the run folder")
    table = pq.read_table(path).sort_by("document")
    columns = [[row.values.to_numpy() for row in table[name]] for name in ("nll", "target_bytes")]
    first = table["first_bytes"].to_pylist() if "first_bytes" in table.column_names else [1] * len(table)
    rows = [_over_bytes(*row) for row in zip(*columns, first, strict=True)]
    lengths = np.array([len(nll) for nll, _ in rows], dtype=np.int64)
    inside = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
    nll, scored = np.full(inside.shape, np.nan), np.full(inside.shape, np.nan)
    if len(rows):
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
class Sums:
    """One model: sums over each document and bucket; bucket K, the last, is the whole document.

    The sums `within` are over all positions inside the comparison's training length, the same for every model.
    """

    bytes: Floats  # [D, K + 1]
    bytes_within: Floats  # [D, 1]
    nll: dict[int, Floats] = field(default_factory=dict)  # by seed, each [D, K + 1]
    nll_within: dict[int, Floats] = field(default_factory=dict)  # by seed, each [D, 1]
    train_length: int | None = None


class Curves:
    """Perplexity against context of every model and floor, with intervals over documents (all in nats)."""

    unit = "byte"
    """What perplexity is counted per, and contexts in."""

    def __init__(self, run: Run, per_octave: int = 2) -> None:
        rows = {name: run.select(PositionCurve, name) for name in run.models + run.floors}
        self.names = [name for name, found in rows.items() if found]
        self.documents: list[str] = []
        self.sums: dict[str, Sums] = {}
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
        self.weights = statistics.document_weights(len(self.documents))
        reached = np.min([(sums.bytes[:, :-1] > 0).sum(axis=0) for sums in self.sums.values()], axis=0)
        self.shown: Ints = np.flatnonzero(reached >= min(statistics.FEWEST_DOCUMENTS, len(self.documents)))

    def _add(self, name: str, seed: int, values: PositionCurve, scores: Scores) -> None:
        if self.documents and scores.documents != self.documents:
            raise ValueError(
                f"model {name} seed {seed} scored other documents than {self.names[0]} did "
                f"({len(scores.documents)} against {len(self.documents)}): intervals are paired over the same documents"
            )
        self.documents = scores.documents
        size, nll = (self._with_total(part, scores.lengths) for part in (scores.scored, scores.nll))
        within = np.array([1, self.trained or 1])
        bytes_within, nll_within = (
            statistics.bucket_sums(part, scores.lengths, within) for part in (scores.scored, scores.nll)
        )
        sums = self.sums.setdefault(name, Sums(size, bytes_within, train_length=values.train_length))
        sums.nll[seed], sums.nll_within[seed] = nll, nll_within

    def _with_total(self, part: Floats, lengths: Ints) -> Floats:
        whole = np.array([1, part.shape[1] + 1])
        return np.hstack([statistics.bucket_sums(part, lengths, edges) for edges in (self.edges, whole)])

    @property
    def middles(self) -> Floats:
        """Where a bucket stands on the axis: the geometric middle of its contexts, [K]."""
        return np.sqrt(self.edges[:-1] * (self.edges[1:] - 1.0))

    def log_perplexity(self, name: str) -> Estimate:
        """Nats per byte in each bucket [K], mean over seeds, with the interval over documents."""
        sums = self.sums[name]
        return statistics.estimate(_mean(sums.nll)[:, :-1], sums.bytes[:, :-1], self.weights)

    def nats_per_byte(self, name: str) -> Estimate:
        """Nats per byte over all scored bytes, [1]; divide by log 2 for bits."""
        sums = self.sums[name]
        return statistics.estimate(_mean(sums.nll)[:, -1:], sums.bytes[:, -1:], self.weights)

    def nats_per_byte_within(self, name: str, reference: str | None = None) -> Estimate:
        """Nats per byte inside the training length, [1]; with a `reference`, less that of it, paired over documents."""
        sums = self.sums[name]
        nll = _mean(sums.nll_within)
        if reference is not None:
            other = self.sums[reference]
            same = (sums.bytes_within == other.bytes_within).all(axis=0)
            nll = np.where(same, nll - _mean(other.nll_within), np.nan)
        return statistics.estimate(nll, sums.bytes_within, self.weights)

    def difference(self, name: str, reference: str) -> Estimate:
        """Log-perplexity of `name` less that of `reference` in each bucket and over all [K + 1]: below 0 is better.

        Paired over documents. Buckets in which the two did not score the same number of bytes are NaN.
        """
        ours, theirs = self.sums[name], self.sums[reference]
        same = (ours.bytes == theirs.bytes).all(axis=0)
        return statistics.estimate(
            np.where(same, _mean(ours.nll) - _mean(theirs.nll), np.nan), ours.bytes, self.weights
        )

    def seeds(self, name: str) -> tuple[list[int], Floats]:
        """The seeds [S] of a model and each one's nats per byte in each bucket, [S, K]."""
        sums = self.sums[name]
        with np.errstate(invalid="ignore"):
            values = [(nll.sum(axis=0) / sums.bytes.sum(axis=0))[:-1] for nll in sums.nll.values()]
        return list(sums.nll), np.stack(values)

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


def _mean(by_seed: dict[int, Floats]) -> Floats:
    return np.mean(list(by_seed.values()), axis=0)
