"""The loss inside the training length, as one number a model: what a table of a paper prints.

Counted per token of the model's own tokenizer, not per byte, so that it is perplexity in a paper's sense wherever the
tokens are the paper's. Windows that tile the documents at the training length are taken where every model has them, for
that is how papers score; else the first tokens of every document, as many as the shortest training length.
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from harness.records import PositionCurve, Window
from harness.report.collect import Row, Run
from harness.report.paired import Paired, Sums
from harness.statistics import Estimate, estimate


class Within(Paired):
    """One column: every scored token inside the training length."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        found = {name: run.select(PositionCurve, name) for name in run.models}
        lengths = [values.train_length for rows in found.values() for _, values in rows if values.train_length]
        if not lengths:
            return
        self.trained = min(lengths)
        self.names = [name for name, rows in found.items() if rows]
        tiles = {name: run.select(Window, name) for name in self.names}
        tiled = {name: [(row, v) for row, v in tiles[name] if v.window == v.stride == self.trained] for name in tiles}
        self.convention = Window.convention if all(tiled.values()) else PositionCurve.convention
        self.edges = np.array([1, self.trained])
        for name in self.names:
            for row, values in tiled[name] if all(tiled.values()) else found[name]:
                self._read(name, row, values)
        self.draw()

    def _read(self, name: str, row: Row, values: PositionCurve | Window) -> None:
        path = row.folder / values.nll_file
        if not path.exists():
            raise ValueError(f"{path} is missing: the NLL files named in records.jsonl belong to the run folder")
        table = pq.read_table(path, columns=["document", "nll", "target_bytes"]).sort_by("document")
        last = None if isinstance(values, Window) else self.trained - 1
        nll, size = (
            [each.values.to_numpy()[:last].astype(np.float64) for each in table[key]] for key in ("nll", "target_bytes")
        )
        tokens = np.array([[float(len(each))] for each in nll])
        sums = Sums(tokens, np.array([[each.sum()] for each in size]), train_length=values.train_length)
        total = np.array([[each.sum()] for each in nll])
        self.add(name, row.record.seed, table["document"].to_pylist(), sums, total)

    def change(self, name: str, base: str) -> Estimate:
        """How much more loss `name` has than `base`, as a share of the loss of `base`, [1]; paired over documents.

        Σ (nll − nll of base) / Σ nll of base. As long as both have the same tokens it is the same share whether the
        loss is counted per token or per byte.
        """
        difference, _ = self.paired_sums(name, base)
        return estimate(difference, self.sums[base].mean, self.weights)

    def seed_changes(self, name: str, base: str) -> list[float]:
        """That change in each seed that both have, in the order of the seeds."""
        ours, theirs = self.sums[name].nll, self.sums[base].nll
        return [float(ours[seed].sum() / theirs[seed].sum() - 1) for seed in sorted(set(ours) & set(theirs))]
