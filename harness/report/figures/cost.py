"""What the models cost: prefill and decoding against length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.records import Decode, Prefill
from harness.report.collect import Run
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
from harness.report.style import DOUBLE, looks
from harness.report.timings import Timing, timings
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


def decode(run: Run, view: View = AS_IS) -> Drawn | None:
    """Milliseconds a token and state size by context."""
    latency = Panel(
        "decode ms/token",
        lambda timing: timing.milliseconds(50),
        lambda timing: (timing.milliseconds(50), timing.milliseconds(90)),
    )
    state = Panel("state size", lambda timing: timing.state_bytes, in_bytes=True)
    caption = "Decoding one token: median of {repeats} (bars: up to the 90th percentile), and the size of the state."
    return _draw(run, Decode, "decode", "Decode cost against context", caption, [latency, state], view)


def _draw(
    run: Run, kind: type[Prefill] | type[Decode], name: str, title: str, caption: str, panels: list[Panel], view: View
) -> Drawn | None:
    found = {model: timings(run, kind, model) for model in run.models}
    lengths = [length for by_length in found.values() for length in by_length]
    if not lengths:
        return None
    lengths += [failure.at for failure in run.failures(kind.kind) if failure.at is not None]
    figure = Figure(figsize=(DOUBLE, 2.6), layout="constrained")
    axes = list(figure.subplots(1, len(panels)))
    ends = [_lines(ax, run, found, panel) for ax, panel in zip(axes, panels, strict=True)]
    for ax in axes:
        context_axis(
            ax,
            min(lengths) / 2**0.25,
            max(lengths) * 2**0.25,
            "prompt length (tokens)" if kind is Prefill else "context (tokens)",
        )
        rescale(ax, "x", view, name)
    rescale(axes[0], "y", view, name)
    mark_failures(figure, axes, run, kind.kind)
    label_lines(figure, list(zip(axes, ends, strict=True)))
    counts = sorted({len(timing.seconds) for by_length in found.values() for timing in by_length.values()})
    repeats = f"{counts[0]} repeats" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} repeats"
    return Drawn(name, title, caption.format(repeats=repeats), figure)


def _lines(ax: Axes, run: Run, found: dict[str, dict[int, Timing]], panel: Panel) -> list[LineEnd]:
    """Draw one line a model and scale the y axis to them."""
    ends: list[LineEnd] = []
    values: list[float] = []
    for name, (color, marker) in looks(run.models).items():
        points = [(timing, panel.line(timing)) for timing in found[name].values()]
        kept = [(timing, value) for timing, value in points if value is not None]
        if not kept:
            continue
        x, y = [timing.at for timing, _ in kept], np.array([value for _, value in kept], dtype=float)
        ax.plot(x, y, color=color, marker=marker)
        if panel.bar:
            low, high = zip(*(panel.bar(timing) for timing, _ in kept), strict=True)
            ax.vlines(x, low, high, color=color, linewidth=0.9)
            values += [*low, *high]
        values += [*y]
        ends.append(LineEnd(name, x[-1], float(y[-1]), color))
    (bytes_axis if panel.in_bytes else value_axis)(ax, values)
    ax.set_ylabel(panel.label)
    return ends
