"""The tables that a reader looks at first: the summary, one row a model, and the paired differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.records import Decode, FirstToken, Loaded, Prefill, Training, TrainStep
from harness.report import formats
from harness.report.collect import Run
from harness.report.curves import Curves
from harness.report.formats import Interval
from harness.report.paired import Paired
from harness.report.tables import Column, Table
from harness.report.timings import doubtful, longest_common, timings
from harness.statistics import FEWEST_DOCUMENTS, Estimate

LOG2 = math.log(2)
SHORT_CONTEXT = 64


def at(estimate: Estimate, k: int) -> Interval:
    """Bucket k of an estimate, in nats."""
    return Interval(float(estimate.value[k]), float(estimate.low[k]), float(estimate.high[k]))


def exponential(nats: Interval) -> Interval:
    """Perplexity of log-perplexity."""
    return Interval(float(np.exp(nats.value)), float(np.exp(nats.low)), float(np.exp(nats.high)))


def bits(nats: Interval) -> Interval:
    """Bits of nats."""
    return Interval(nats.value / LOG2, nats.low / LOG2, nats.high / LOG2)


@dataclass(frozen=True)
class Headline:
    """A context that the tables quote: its column key and title, and the bucket that stands for it by model."""

    key: str
    title: str
    bucket: dict[str, int]


def headlines(curves: Curves) -> list[Headline]:
    """A short context, the end of the training length, and the longest context that enough documents reach.

    What has no training length of its own (an n-gram, a loaded model that does not say) is quoted at the shortest one.
    """
    if not curves.names:
        return []
    trained = {name: curves.bucket_within(curves.sums[name].train_length) for name in curves.names}
    known = {k for k in trained.values() if k is not None}
    short, longest = curves.bucket_of(SHORT_CONTEXT), int(curves.shown[-1])
    found = [Headline("longest", f"at {curves.span(longest)}", dict.fromkeys(curves.names, longest))]
    if known == {longest}:  # nothing is scored beyond the training length
        found.clear()
    if known:
        title = f"at {curves.span(min(known))}" if len(known) == 1 else "at training length"
        bucket = {name: min(known) if k is None else k for name, k in trained.items()}
        found.insert(0, Headline("trained", title, bucket))
    if short is not None and short in curves.shown:
        found.insert(0, Headline("short", f"at {curves.span(short)}", dict.fromkeys(curves.names, short)))
    return found


def summary(run: Run, curves: Curves) -> Table:
    """One row a model: what it is, how well it predicts, what that costs; floors below."""
    names = run.models + run.floors
    prefill = {name: timings(run, Prefill, name) for name in names}
    decode = {name: timings(run, Decode, name) for name in names}
    first = {name: timings(run, FirstToken, name) for name in names}
    length, prompt, context = longest_common(prefill), longest_common(first), longest_common(decode)
    chosen = [head for head in headlines(curves) if head.key != "short"]
    rows = []
    for name in names:
        row = _identity(run, name)
        if name in curves.names:
            nats = curves.log_perplexity(name)
            row |= {f"ppl_{head.key}": exponential(at(nats, head.bucket[name])) for head in chosen}
            row["bits_per_byte"] = bits(at(curves.nats_per_byte(name), 0))
            if curves.trained:
                row["bits_within"] = bits(at(curves.nats_per_byte_within(name), 0))
            if curves.trained and run.floors and name in run.models:
                row["over_floor"] = bits(at(curves.nats_per_byte_within(name, run.floors[0]), 0))
        if length in prefill[name]:
            timing = prefill[name][length]
            row |= {"prefill": timing.median_throughput, "peak_bytes": timing.peak_bytes}
        if prompt in first[name]:
            row["first_token"] = first[name][prompt].milliseconds(50)
        if context in decode[name]:
            steps = decode[name][context]
            row |= {f"decode_p{p}": steps.milliseconds(p) for p in (50, 90, 99)}
            row |= {"state_bytes": steps.state_bytes}
        rows.append(row)
    failed = frozenset(i for i, row in enumerate(rows) if row["status"] != "ok")
    columns = _summary_columns(chosen, curves, (length, prompt, context), run.floors)
    caption = f"{_summary_caption(curves, (length, prompt, context))} {doubtful(run)}".strip()
    return Table("summary", "Summary", caption, columns, rows, failed, len(run.models) if run.floors else None)


def _identity(run: Run, name: str) -> dict[str, Any]:
    trained = run.values(Training, name)
    obtained: list[Training | Loaded] = [*trained, *run.values(Loaded, name)]
    steps = list(timings(run, TrainStep, name).values())
    paths = [row.record.conditions.kernel_path for row in run.rows if row.record.model == name]
    failures = [f"{failure.kind} {failure.status}" for failure in run.failures() if failure.model == name]
    return {
        "model": name,
        "parameters": next((values.parameters for values in obtained), None),
        "train_throughput": steps[-1].median_throughput if steps else None,
        "kernel_path": ", ".join(dict.fromkeys(path for path in paths if path)) or None,
        "status": "; ".join(dict.fromkeys(failures)) or "ok",
    }


def _summary_columns(
    chosen: list[Headline], curves: Curves, timed_at: tuple[int | None, int | None, int | None], floors: list[str]
) -> list[Column]:
    length, prompt, context = timed_at
    unit = f"ppl/{curves.unit}"
    trained = curves.trained if curves.names else None
    within = [Column("bits_within", f"bits/byte within {trained}", formats.interval)] if trained else []
    if trained and floors:
        within.append(Column("over_floor", f"less that of the {floors[0]}", formats.interval))
    timed = [
        Column("prefill", f"prefill tokens/s at {length}", formats.rate),
        Column("peak_bytes", f"peak memory at {length}", formats.size),
    ]
    decoded = [
        Column("decode_p50", f"decode ms p50 at {context}", formats.significant),
        *(Column(f"decode_p{p}", f"p{p}", formats.significant) for p in (90, 99)),
        Column("state_bytes", f"state at {context}", formats.size),
    ]
    return [
        Column("model", "model", text=True),
        Column("parameters", "param.", formats.count),
        Column("train_throughput", "training tokens/s", formats.rate),
        *(Column(f"ppl_{head.key}", f"{unit} {head.title}", formats.interval) for head in chosen),
        *within,
        *([Column("bits_per_byte", "bits/byte over all", formats.interval)] if curves.names else []),
        *(timed if length else []),
        *([Column("first_token", f"first token ms at {prompt}", formats.significant)] if prompt else []),
        *(decoded if context else []),
        Column("kernel_path", "kernel path", text=True),
        Column("status", "status", text=True),
    ]


def _summary_caption(curves: Curves, timed_at: tuple[int | None, int | None, int | None]) -> str:
    length, prompt, context = timed_at
    parts = []
    if curves.names:
        parts.append(f"Perplexity (ppl) and bits per byte on {describe(curves)}; lower is better.")
        parts.append(f"'At a–b': over the targets with a to b {curves.unit}s of context.")
        if curves.trained:
            parts.append(f"'Within {curves.trained}': over all positions inside the training length.")
    if length:
        parts.append(f"Prefill: {length} tokens from an empty state, median; peak memory of the same.")
    if prompt:
        parts.append(f"First token: from the ids of {prompt} tokens to a sampled token on the host, median.")
    if context:
        parts.append(f"Decode: single-token steps after {context} tokens, percentiles of all timed steps.")
    return " ".join(parts)


def describe(curves: Paired) -> str:
    """Documents, seeds, kind of interval and convention, for a caption."""
    seeds = max(len(sums.nll) for sums in curves.sums.values())
    over = "1 seed" if seeds == 1 else f"the mean of {seeds} seeds"
    kind = "95 % intervals: paired bootstrap over documents, seeds fixed"
    if len(curves.documents) < FEWEST_DOCUMENTS:
        kind = f"no intervals from fewer than {FEWEST_DOCUMENTS} documents"
    return f"{len(curves.documents)} test documents, {over}; {kind}; convention: {curves.convention}"


def differences(run: Run, curves: Curves) -> Table | None:
    """Log-perplexity less that of the first model, paired over documents."""
    reference, *others = [name for name in run.models + run.floors if name in curves.names] or [""]
    if not others:
        return None
    chosen = headlines(curves)
    rows = []
    for name in others:
        estimate = curves.difference(name, reference)
        row: dict[str, Any] = {"model": name, "all": at(estimate, len(curves.edges) - 1)}
        rows.append(row | {head.key: at(estimate, head.bucket[reference]) for head in chosen})
    caption = (
        f"Log-perplexity (nats per {curves.unit}) less that of {reference}: below zero is better than {reference}; "
        f"0.01 is one per cent of perplexity. On {describe(curves)}. Each interval stands for itself: none is "
        "corrected for the number of comparisons."
    )
    columns = [
        Column("model", "model", text=True),
        *(Column(head.key, f"Δ {head.title}", formats.interval) for head in chosen),
        Column("all", "Δ all", formats.interval),
    ]
    models = sum(name in run.models for name in others)
    rule = models if 0 < models < len(others) else None
    return Table("differences", f"Differences from {reference}", caption, columns, rows, rule=rule)
