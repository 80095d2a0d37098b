"""The tables that answer questions: which model is better, what context is worth, what a convention changes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from harness import statistics
from harness.records import Window
from harness.report import formats
from harness.report.collect import Run
from harness.report.contexts import Contexts
from harness.report.curves import Curves, read_scores
from harness.report.formats import Interval
from harness.report.summary import at, bits, describe, exponential, headlines
from harness.report.tables import Column, Table
from harness.statistics import Estimate

FEW_ROWS = 24
"""Longer tables are folded on the page."""
ROUNDING = 1e-6
"""Nats: a smaller change of a float32 loss is rounding, however certain its sign."""


def significance(run: Run, curves: Curves) -> Table | None:
    """Every pair of models at every quoted context: which is better, by how much, and with what certainty."""
    names = [name for name in run.models if name in curves.names]
    if len(names) < 2:
        return None
    rows, p = [], []
    for head, (first, second) in itertools.product(headlines(curves), itertools.combinations(names, 2)):
        if head.bucket[first] != head.bucket[second]:
            continue
        column = [head.bucket[first]]
        nll, tokens = (sums[:, column] for sums in curves.paired_sums(first, second))
        found = at(statistics.estimate(nll, tokens, curves.weights), 0)
        better, worse = (first, second) if found.value < 0 else (second, first)
        by = found if found.value < 0 else Interval(-found.value, -found.high, -found.low)
        rows.append({"context": head.title, "better": better, "worse": worse, "by": by, "ratio": exponential(by)})
        p.append(float(statistics.p_values(nll, tokens, curves.weights)[0]))
    if not rows:
        return None
    adjusted = statistics.holm(np.array(p))
    for row, single, corrected in zip(rows, p, adjusted, strict=True):
        sure = "yes" if corrected < 1 - statistics.LEVEL else ("unknown" if np.isnan(corrected) else "no")
        row |= {"p": single, "holm": float(corrected), "sure": sure}
    columns = [
        Column("context", "context", text=True),
        Column("better", "better", text=True),
        Column("worse", "than", text=True),
        Column("by", "Δ log-perplexity", formats.interval),
        Column("ratio", "perplexity ratio", formats.interval),
        Column("p", "p", probability),
        Column("holm", "p corrected", probability),
        Column("sure", "certain", text=True),
    ]
    caption = (
        f"Paired over the documents, {describe(curves)}. p: two-sided t-test on the bootstrap's standard error; "
        f"corrected for all {len(rows)} comparisons of this table (Holm). Certain: corrected p below 0.05. It speaks "
        "of these trained models on other documents of the kind, not of other seeds."
    )
    return Table("significance", "Which is better", caption, columns, rows, folded=len(rows) > FEW_ROWS)


def probability(p: float | None) -> str:
    """A p value to two digits; below a thousandth only that."""
    if p is None or np.isnan(p):
        return formats.MISSING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def context_gain(run: Run, contexts: Contexts) -> Table | None:
    """What a longer context is worth to each model, on the same targets, within the training length and beyond."""
    if not contexts.names:
        return None
    lengths = [int(context) for context in contexts.edges[:-1]]
    shortest, longest = lengths[0], lengths[-1]
    within = [length for length in lengths if contexts.trained and length < contexts.trained]
    trained = within[-1] if within else longest
    rows = []
    for name in [name for name in run.models + run.floors if name in contexts.names]:
        nats = contexts.log_perplexity(name)
        row: dict[str, Any] = {"model": name}
        row |= {f"at_{length}": exponential(at(nats, lengths.index(length))) for length in (shortest, trained, longest)}
        row["within"] = at(contexts.gain(name, shortest, trained), 0)
        row["beyond"] = at(contexts.gain(name, trained, longest), 0)
        rows.append(row | {"verdict": _verdict(row["beyond"])})
    columns = [
        Column("model", "model", text=True),
        *(
            Column(f"at_{length}", f"ppl/{contexts.unit} given {length}", formats.interval)
            for length in dict.fromkeys((shortest, trained, longest))
        ),
        Column("within", f"Δ from {shortest} to {trained}", formats.interval),
        *([Column("beyond", f"Δ from {trained} to {longest}", formats.interval)] if trained < longest else []),
        *([Column("verdict", "beyond the training length", text=True)] if trained < longest else []),
    ]
    caption = (
        f"The same targets at every context, {describe(contexts)}. Δ in nats per {contexts.unit}: below zero, the "
        "added context helps."
    )
    models = sum(name in contexts.names for name in run.models)
    return Table("context-gain", "What context is worth", caption, columns, rows, rule=models if run.floors else None)


def _verdict(change: Interval) -> str:
    if change.high < -ROUNDING:
        return "helps"
    return "hurts" if change.low > ROUNDING else "no certain change"


def conventions(run: Run, curves: Curves) -> Table | None:
    """The same models' perplexity under every convention that was measured: why two papers' numbers may differ."""
    rows = []
    windows = {}
    for name in [name for name in run.models if name in curves.names]:
        found = _windowed(run, curves, name)
        row: dict[str, Any] = {"model": name}
        if curves.trained:
            row["within"] = bits(at(curves.nats_per_byte_within(name), 0))
        row["all"] = bits(at(curves.nats_per_byte(name), 0))
        for (window, stride), nats in found.items():
            windows[f"window_{window}_{stride}"] = _title(window, stride)
            row[f"window_{window}_{stride}"] = bits(at(nats, 0))
        rows.append(row)
    if not windows:
        return None
    columns = [
        Column("model", "model", text=True),
        *([Column("within", f"position, within {curves.trained}", formats.interval)] if curves.trained else []),
        Column("all", "position, all", formats.interval),
        *(Column(key, title, formats.interval) for key, title in windows.items()),
    ]
    caption = "Bits per byte of the same documents; each convention scores a token given other tokens before it."
    return Table("conventions", "Scoring conventions", caption, columns, rows)


def _title(window: int, stride: int) -> str:
    return f"windows of {window}" + ("" if stride == window else f", stride {stride}")


def _windowed(run: Run, curves: Curves, name: str) -> dict[tuple[int, int], Estimate]:
    """Nats per byte [1] of each window that was measured, mean over seeds."""
    sums: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for row, values in run.select(Window, name):
        scores = read_scores(row.folder / values.nll_file)
        pair = tuple(np.nansum(part, axis=1, keepdims=True) for part in (scores.nll, scores.scored))
        sums.setdefault((values.window, values.stride), []).append((pair[0], pair[1]))
    return {
        key: statistics.estimate(np.mean([nll for nll, _ in found], axis=0), found[0][1], curves.weights)
        for key, found in sums.items()
    }
