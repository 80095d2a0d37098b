"""Quality against cost in one table: what a model predicts at the quoted contexts, and what each use of it takes."""

from __future__ import annotations

from typing import Any

from harness.records import Decode, Prefill, TrainStep
from harness.report import formats
from harness.report.collect import Run
from harness.report.curves import Curves
from harness.report.summary import at, describe, exponential, headlines
from harness.report.tables import Column, Table
from harness.report.timings import at_of, doubtful, longest_common, timings

KINDS: tuple[tuple[type[TrainStep] | type[Prefill] | type[Decode], str], ...] = (
    (TrainStep, "train"), (Prefill, "prefill"), (Decode, "decode"),
)  # fmt: skip


def quality_against_cost(run: Run, curves: Curves) -> Table | None:
    """One row a model: perplexity at each quoted context; time and FLOPs a token in training, prefill and decoding."""
    names = [name for name in run.models if name in curves.names]
    found = {label: {name: timings(run, kind, name) for name in names} for kind, label in KINDS}
    lengths = {label: longest_common(by_model) for label, by_model in found.items()}
    if not names or not any(lengths.values()):
        return None
    heads = headlines(curves)
    rows = []
    for name in names:
        nats = curves.log_perplexity(name)
        row: dict[str, Any] = {"model": name}
        row |= {f"ppl_{head.key}": exponential(at(nats, head.bucket[name])) for head in heads}
        for kind, label in KINDS:
            timing = found[label][name].get(lengths[label] or 0)
            if timing is None:
                continue
            flops = {v.flops for v in run.values(kind, name) if at_of(v) == timing.at and v.batch == timing.batch}
            per_token = min(flops) / timing.tokens
            row |= {f"{label}_ms": timing.milliseconds(50) / timing.tokens, f"{label}_mflop": per_token / 1e6}
            row[f"{label}_rate"] = per_token / (timing.milliseconds(50) / 1e3 / timing.tokens) / 1e9
            row["state_bytes"] = timing.state_bytes if kind is Decode else row.get("state_bytes")
        rows.append(row)
    shown = [(label, lengths[label]) for _, label in KINDS if lengths[label]]
    columns = [
        Column("model", "model", text=True),
        *(Column(f"ppl_{head.key}", f"ppl/{curves.unit} {head.title}", formats.interval) for head in heads),
        *(
            Column(f"{label}_{unit}", f"{label} {title} at {length}", formats.significant)
            for label, length in shown
            for unit, title in (("ms", "ms/token"), ("mflop", "MFLOP/token"), ("rate", "GFLOP/s"))
        ),
        *([Column("state_bytes", f"state at {lengths['decode']}", formats.size)] if lengths["decode"] else []),
    ]
    caption = (
        f"Perplexity on {describe(curves)}. Time: median. FLOPs: by the formulas beside each model, TTT's inner "
        f"backward included; GFLOP/s: what those formulas and that time make. {doubtful(run)}"
    ).strip()
    return Table("cost", "Quality against cost", caption, columns, rows)
