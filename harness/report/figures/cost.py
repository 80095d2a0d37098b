"""What the models cost: prefill, the first token and decoding against length, and decoding against batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.records import Decode, FirstToken, Prefill
from harness.report.collect import Failure, Run
from harness.report.figures.axes import (
    Drawn,
    LineEnd,
    bytes_axis,
    context_axis,
    label_lines,
    mark_failures,
    rescale,
    value_axis,
)
from harness.report.style import DOUBLE, SINGLE, looks
from harness.report.timings import Kind, Timing, batches, doubtful, longest_common, timings
from harness.report.view import AS_IS, View

Measure = Callable[[Timing], float | None]


@dataclass(frozen=True)
class Panel:
    """One quantity by length: its axis label, the line, and the two ends of a bar around each point."""

    label: str
    line: Measure
    bar: Callable[[Timing], tuple[float, float]] | None = None
    in_bytes: bool = False


def prefill(run: Run, view: View = AS_IS) -> Drawn | None:
    """Prefill tokens/s and peak memory by length."""
    throughput = Panel(
        "prefill tokens/s", Timing.throughput, lambda timing: (timing.throughput(75), timing.throughput(25))
    )
    memory = Panel("peak memory", lambda timing: timing.peak_bytes, in_bytes=True)
    caption = (
        "Prefill from an empty state: tokens/s at the median of {repeats} (bars: the middle half), and peak memory."
    )
    return _draw(run, Prefill, "prefill", "Prefill cost against length", caption, [throughput, memory], view)


def first_token(run: Run, view: View = AS_IS) -> Drawn | None:
    """Milliseconds from a prompt to the first token of its answer, by the prompt's length."""
    latency = Panel(
        "time to first token (ms)",
        lambda timing: timing.milliseconds(50),
        lambda timing: (timing.milliseconds(25), timing.milliseconds(75)),
    )
    caption = "From a prompt's ids on the host to a sampled token there: median of {repeats} (bars: the middle half)."
    return _draw(run, FirstToken, "first-token", "Time to first token", caption, [latency], view)


LATENCY = Panel(
    "decode ms/step",
    lambda timing: timing.milliseconds(50),
    lambda timing: (timing.milliseconds(50), timing.milliseconds(90)),
)
STATE = Panel("state size", lambda timing: timing.state_bytes, in_bytes=True)


def decode(run: Run, view: View = AS_IS) -> Drawn | None:
    """Milliseconds a step and state size by context, at the smallest batch."""
    caption = "Decoding one token: median of {repeats} (bars: up to the 90th percentile), and the size of the state."
    return _draw(run, Decode, "decode", "Decode cost against context", caption, [LATENCY, STATE], view)


def decode_batch(run: Run, view: View = AS_IS) -> Drawn | None:
    """Tokens a second and milliseconds a step by batch, after the longest context that all were timed at."""
    sizes = batches(run, Decode)
    by_batch = {(name, size): timings(run, Decode, name, size) for name in run.models for size in sizes}
    context = longest_common({f"{name} {size}": at for (name, size), at in by_batch.items()})
    if len(sizes) < 2 or context is None:
        return None
    found: dict[str, dict[int, Timing]] = {name: {} for name in run.models}
    for (name, size), at in by_batch.items():
        if context in at:
            found[name][size] = at[context]
    rate = Panel(
        "decode tokens/s",
        Timing.throughput,
        lambda timing: (timing.throughput(75), timing.throughput(25)),
    )
    figure = Figure(figsize=(DOUBLE, 2.6), layout="constrained")
    axes = list(figure.subplots(1, 2))
    ends = [_lines(ax, run, found, panel) for ax, panel in zip(axes, (rate, LATENCY), strict=True)]
    for ax in axes:
        context_axis(ax, min(sizes) / 2**0.25, max(sizes) * 2**0.25, "batch (rows)")
        rescale(ax, "x", view, "decode-batch")
    rescale(axes[0], "y", view, "decode-batch")
    mark_failures(figure, [], run, Decode.kind, lambda failure: failure.at == context)
    label_lines(figure, list(zip(axes, ends, strict=True)))
    caption = (
        f"Single-token steps of so many rows at once after {context} tokens of context: tokens/s at the median "
        f"(bars: the middle half), and ms a step (bars: up to the 90th percentile). {doubtful(run)}"
    ).strip()
    return Drawn("decode-batch", "Decode cost against batch", caption, figure)


def _draw(run: Run, kind: Kind, name: str, title: str, caption: str, panels: list[Panel], view: View) -> Drawn | None:
    found = {model: timings(run, kind, model) for model in run.models}
    lengths = [length for by_length in found.values() for length in by_length]
    if not lengths:
        return None
    batch = min(batches(run, kind))

    def shown(failure: Failure) -> bool:
        return failure.batch in (0, batch)

    lengths += [failure.at for failure in run.failures(kind.kind) if failure.at is not None and shown(failure)]
    figure = Figure(figsize=(DOUBLE if len(panels) > 1 else SINGLE, 2.6), layout="constrained")
    axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
    ends = [_lines(ax, run, found, panel) for ax, panel in zip(axes, panels, strict=True)]
    axis = "context (tokens)" if kind is Decode else "prompt length (tokens)"
    for ax in axes:
        context_axis(ax, min(lengths) / 2**0.25, max(lengths) * 2**0.25, axis)
        rescale(ax, "x", view, name)
    rescale(axes[0], "y", view, name)
    mark_failures(figure, axes, run, kind.kind, shown)
    label_lines(figure, list(zip(axes, ends, strict=True)))
    counts = sorted({len(timing.seconds) for by_length in found.values() for timing in by_length.values()})
    repeats = f"{counts[0]} repeats" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} repeats"
    return Drawn(name, title, f"{caption.format(repeats=repeats)} {doubtful(run)}".strip(), figure)


def _lines(ax: Axes, run: Run, found: dict[str, dict[int, Timing]], panel: Panel) -> list[LineEnd]:
    """Draw one line a model and scale the y axis to them."""
    ends: list[LineEnd] = []
    values: list[float] = []
    for name, (color, marker) in looks(run.models).items():
        points = [(at, timing, panel.line(timing)) for at, timing in found[name].items()]
        kept = [(at, timing, value) for at, timing, value in points if value is not None]
        if not kept:
            continue
        x, y = [at for at, _, _ in kept], np.array([value for *_, value in kept], dtype=float)
        ax.plot(x, y, color=color, marker=marker)
        if panel.bar:
            low, high = zip(*(panel.bar(timing) for _, timing, _ in kept), strict=True)
            ax.vlines(x, low, high, color=color, linewidth=0.9)
            values += [*low, *high]
        values += [*y]
        ends.append(LineEnd(name, x[-1], float(y[-1]), color))
    (bytes_axis if panel.in_bytes else value_axis)(ax, values)
    ax.set_ylabel(panel.label)
    return ends
