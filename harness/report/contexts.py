"""The `fixed_target` curves of a run: what the same tokens cost given ever more context."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as compute
import pyarrow.parquet as pq

from harness import statistics
from harness.records import FixedTarget
from harness.report.collect import Row, Run
from harness.report.paired import Paired, Sums
from harness.statistics import Estimate, Floats


class Contexts(Paired):
    """Perplexity against context under `fixed_target`; every column holds the same tokens."""

    convention = FixedTarget.convention

    def __init__(self, run: Run) -> None:
        super().__init__()
        rows = {name: run.select(FixedTarget, name) for name in run.models + run.floors}
        self.names = [name for name, found in rows.items() if found]
        if not self.names:
            return
        given = {tuple(values.contexts) for name in self.names for _, values in rows[name]}
        if len(given) > 1:
            raise ValueError(f"models were given different contexts ({' and '.join(map(str, sorted(given)))})")
        contexts = given.pop()
        self.edges = np.array([*contexts, 2 * contexts[-1]])
        self.trained = min(
            (v.train_length for n in self.names for _, v in rows[n] if v.train_length is not None), default=None
        )
        for name in self.names:
            for row, values in rows[name]:
                self._read(name, row, values)
        self.draw()

    def _read(self, name: str, row: Row, values: FixedTarget) -> None:
        path = row.folder / values.nll_file
        if not path.exists():
            raise ValueError(f"{path} is missing: the NLL files named in records.jsonl belong to the run folder")
        table = pq.read_table(path)
        documents, document = np.unique(table["document"].to_numpy(), return_inverse=True)
        column = np.searchsorted(self.edges, table["context"].to_numpy())
        length = compute.list_value_length(table["nll"]).to_numpy()

        def total(values: Floats) -> Floats:
            sums = np.zeros((len(documents), len(self.edges) - 1))
            np.add.at(sums, (np.repeat(document, length), np.repeat(column, length)), values)
            return sums

        nll, size = (compute.list_flatten(table[key]).to_numpy().astype(float) for key in ("nll", "target_bytes"))
        inside = total(size)  # per byte, as every curve
        sums = Sums(inside, inside, train_length=values.train_length)
        self.add(name, row.record.seed, documents.tolist(), sums, total(nll))

    @property
    def middles(self) -> Floats:
        """The contexts themselves, [K]."""
        return self.edges[:-1].astype(float)

    def gain(self, name: str, shorter: int, longer: int) -> Estimate:
        """Log-perplexity given `longer` less that given `shorter` tokens, [1]: below 0, the model uses the difference.

        Paired over documents; both must be contexts of the curve.
        """
        low, high = (int(np.flatnonzero(self.edges[:-1] == context)[0]) for context in (shorter, longer))
        sums = self.sums[name]
        change = sums.mean[:, high] - sums.mean[:, low]
        return statistics.estimate(change[:, None], sums.tokens[:, [high]], self.weights)
