"""Scores of several models on the same documents, resampled together: what every scoring convention has in common.

Only the sums of each document and column stay in memory, so one model's NLL is held at a time. All models and seeds
must have scored the same documents, for the intervals are paired: one draw of documents serves them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from harness import statistics
from harness.statistics import Estimate, Floats, Ints


@dataclass
class Sums:
    """One model: sums over each document and column. A column is a bucket of contexts, or a context."""

    tokens: Floats  # [D, C]
    bytes: Floats  # [D, C]
    nll: dict[int, Floats] = field(default_factory=dict)  # by seed, each [D, C]
    train_length: int | None = None

    @property
    def mean(self) -> Floats:
        """NLL, mean over seeds, [D, C]."""
        return np.mean(list(self.nll.values()), axis=0)


class Paired:
    """Perplexity by context of every model and floor under one convention, with intervals over documents (in nats).

    The first K columns of `sums` are points of the curve, bounded by `edges` [K + 1]; `shown` are those that enough
    documents reach.
    """

    convention: str
    edges: Ints
    shown: Ints

    def __init__(self) -> None:
        self.names: list[str] = []
        self.documents: list[str] = []
        self.sums: dict[str, Sums] = {}

    def add(self, name: str, seed: int, documents: list[str], sums: Sums, nll: Floats) -> None:
        """One model's and seed's `nll` [D, C]; ValueError if others scored other documents."""
        if self.documents and documents != self.documents:
            raise ValueError(
                f"model {name} seed {seed} scored other documents than {self.names[0]} did "
                f"({len(documents)} against {len(self.documents)}): intervals are paired over the same documents"
            )
        self.documents = documents
        self.sums.setdefault(name, sums).nll[seed] = nll

    def draw(self) -> None:
        """Fix the draw of documents and which points enough documents reach; call it when all scores are there."""
        self.weights = statistics.document_weights(len(self.documents))
        points = len(self.edges) - 1
        reached = np.min([(sums.tokens[:, :points] > 0).sum(axis=0) for sums in self.sums.values()], axis=0)
        self.shown = np.flatnonzero(reached >= min(statistics.FEWEST_DOCUMENTS, len(self.documents)))

    @property
    def byte_level(self) -> bool:
        """Whether every token is one byte, so that perplexity per token is perplexity per byte."""
        return bool(self.sums) and all(bool(np.array_equal(sums.tokens, sums.bytes)) for sums in self.sums.values())

    @property
    def unit(self) -> str:
        """What perplexity is counted per."""
        return "byte" if self.byte_level else "token"

    @property
    def middles(self) -> Floats:
        """Where a point stands on the axis: the geometric middle of its contexts, [K]."""
        return np.sqrt(self.edges[:-1] * (self.edges[1:] - 1.0))

    def log_perplexity(self, name: str) -> Estimate:
        """Nats per token at each point [K], mean over seeds, with the interval over documents."""
        sums, points = self.sums[name], len(self.edges) - 1
        return statistics.estimate(sums.mean[:, :points], sums.tokens[:, :points], self.weights)

    def difference(self, name: str, reference: str) -> Estimate:
        """Log-perplexity of `name` less that of `reference` in each column [C]: below 0 is better.

        Paired over documents. Columns in which the two did not score the same number of tokens are NaN.
        """
        return statistics.estimate(*self.paired_sums(name, reference), self.weights)

    def paired_sums(self, name: str, reference: str) -> tuple[Floats, Floats]:
        """Difference of the two models' NLL, and tokens, both [D, C]; NaN as `difference` says."""
        ours, theirs = self.sums[name], self.sums[reference]
        same = (ours.tokens == theirs.tokens).all(axis=0)
        return np.where(same, ours.mean - theirs.mean, np.nan), ours.tokens

    def seeds(self, name: str) -> tuple[list[int], Floats]:
        """The seeds [S] of a model and each one's nats per token at each point, [S, K]."""
        sums, points = self.sums[name], len(self.edges) - 1
        with np.errstate(invalid="ignore"):
            values = [(nll.sum(axis=0) / sums.tokens.sum(axis=0))[:points] for nll in sums.nll.values()]
        return list(sums.nll), np.stack(values)
