"""Dynamic evaluation in the report: every model twice, with frozen weights and adapting, on the same reading."""

from __future__ import annotations

from typing import Any

from harness import statistics
from harness.records import Dynamic
from harness.report import formats
from harness.report.collect import Run
from harness.report.curves import read_scores
from harness.report.paired import Paired
from harness.report.summary import at, bits, describe
from harness.report.tables import Column, Table
from harness.statistics import Estimate

FROZEN = " (frozen)"


class Adapting(Paired):
    """NLL by position of each model, adapting under its name and frozen under its name and `FROZEN`."""

    convention = "position, read in segments"

    def __init__(self, run: Run) -> None:
        super().__init__()
        rows = {name: run.select(Dynamic, name) for name in run.models}
        self.models = [name for name, found in rows.items() if found]
        self.names = [name + kind for name in self.models for kind in ("", FROZEN)]
        if not self.models:
            return
        values = [v for name in self.models for _, v in rows[name]]
        self.edges = statistics.buckets(max(v.max_length for v in values))
        self.trained = min((v.train_length for v in values if v.train_length is not None), default=None)
        for name in self.models:
            for row, found in rows[name]:
                for kind, column in (("", "nll"), (FROZEN, "frozen_nll")):
                    scores = read_scores(row.folder / found.nll_file, column)
                    sums, nll = scores.sums(self.edges, found.train_length)
                    self.add(name + kind, row.record.seed, scores.documents, sums, nll)
        self.draw()

    def bits_per_byte(self, name: str) -> Estimate:
        """Nats per byte over all tokens, [1]."""
        sums = self.sums[name]
        return statistics.estimate(sums.mean[:, -1:], sums.bytes[:, -1:], self.weights)

    def gain(self, name: str) -> Estimate:
        """Nats per byte adapting less those frozen, [1], paired over documents: below zero, adapting helps."""
        ours, frozen = self.sums[name], self.sums[name + FROZEN]
        return statistics.estimate((ours.mean - frozen.mean)[:, -1:], ours.bytes[:, -1:], self.weights)


def dynamic(run: Run, adapting: Adapting) -> Table | None:
    """One row a model: bits per byte frozen and adapting, what adapting gains, and what it costs."""
    if not adapting.models:
        return None
    rows = []
    for name in adapting.models:
        values = run.values(Dynamic, name)
        row: dict[str, Any] = {"model": name, "frozen": bits(at(adapting.bits_per_byte(name + FROZEN), 0))}
        row |= {"adapting": bits(at(adapting.bits_per_byte(name), 0)), "gain": bits(at(adapting.gain(name), 0))}
        row["cost"] = sum(v.adapted_seconds for v in values) / sum(v.frozen_seconds for v in values)
        rates = ", ".join(sorted({f"{v.learning_rate:g}" for v in values}))
        rows.append(row | {"moving": values[0].adapted_parameters, "rate": rates})
    first = run.values(Dynamic, adapting.models[0])[0]
    columns = [
        Column("model", "model", text=True),
        Column("frozen", "bits/byte frozen", formats.interval),
        Column("adapting", "bits/byte adapting", formats.interval),
        Column("gain", "Δ", formats.interval),
        Column("cost", "time × frozen", formats.significant),
        Column("moving", "weights that move", formats.count),
        Column("rate", "step size"),
    ]
    caption = (
        f"The first {first.max_length} bytes of {describe(adapting)}. Adapting ({first.method}, {first.parameters}): "
        f"{first.segment} tokens are predicted given up to {first.context} before them, then learned from; every "
        "document begins with the trained weights, the step size was chosen on training documents. Below zero, "
        "adapting helps."
    )
    return Table("dynamic", "Dynamic evaluation", caption, columns, rows)
