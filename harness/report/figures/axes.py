"""What all figures share: readable ticks on log axes, labels at the ends of lines, marks for what failed.

Labels at line ends replace a legend box: the eye need not travel. They are pushed apart only as far as they would
overlap, and a thin line then leads from a label to its curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from harness.report.collect import Failure, Run
from harness.report.style import GREY, looks, readable
from harness.report.view import View
from harness.statistics import Floats

LABEL_GAP = 9.5  # points between the middles of two labels
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_MANTISSAS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 6.0))


@dataclass(frozen=True)
class Drawn:
    """A finished figure with its file name, title and caption line."""

    name: str
    title: str
    caption: str
    figure: Figure


def number(value: float) -> str:
    """A tick label: plain digits, k and M from 10,000 on."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= (1e4 if unit == "k" else factor):
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def numbers(values: Sequence[float]) -> list[str]:
    """Tick labels of evenly spaced values: all with the same decimals."""
    if max(values, default=0) >= 1e4:
        return [number(value) for value in values]
    decimals = max((len(f"{value:g}".partition(".")[2]) for value in values), default=0)
    return [f"{value:.{decimals}f}" for value in values]


def context_axis(ax: Axes, low: float, high: float, label: str) -> None:
    """A log2 x axis over low … high with powers of two written out, six of them at most."""
    ax.set_xlim(low, high)  # first: a scale is put on limits, and without them looks for positive values to fit
    ax.set_xscale("log", base=2)
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    powers = [2**k for k in range(first, last + 1)]
    labelled = powers[:: max(1, math.ceil(len(powers) / 6))]
    _ticks(ax.xaxis, labelled, [f"{p // 1024}k" if p >= 1024 and last >= 14 else str(p) for p in labelled])
    ax.xaxis.set_minor_locator(FixedLocator(powers))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(label)


def value_axis(ax: Axes, values: Sequence[float], along: str = "y") -> None:
    """A log axis around all finite values with a little air, and ticks at round numbers."""
    low, high = _limits(values)
    ticks, texts = round_ticks(low, high)
    ax.set(**{f"{along}lim": (low, high), f"{along}scale": "log"})
    _ticks(ax.yaxis if along == "y" else ax.xaxis, ticks, texts)


def bytes_axis(ax: Axes, values: Sequence[float]) -> None:
    """A log y axis of bytes with ticks at powers of two, or at round numbers where those are too few."""
    low, high = _limits(values)
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    step = max(1, math.ceil((last - first + 1) / 7))
    ticks = [2.0**k for k in range(first, last + 1) if k % step == 0]
    power = min(max(0, math.floor(math.log2(low) / 10)), len(_UNITS) - 1)
    texts = [_size(tick) for tick in ticks]
    if len(ticks) < 3:
        ticks, texts = round_ticks(low / 1024**power, high / 1024**power)
        ticks, texts = [tick * 1024**power for tick in ticks], [f"{text} {_UNITS[power]}" for text in texts]
    ax.set(ylim=(low, high), yscale="log")
    _ticks(ax.yaxis, ticks, texts)


def round_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round numbers within low … high of a log axis, at least four where round numbers allow it, and their labels."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in _MANTISSAS:
        ticks = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(ticks) >= 4:
            return ticks, [number(tick) for tick in ticks]
    ticks = linear_ticks(low, high)
    return ticks, numbers(ticks)


def rescale(ax: Axes, along: str, view: View, figure: str) -> None:
    """Give an axis the scale and limits that were chosen for it, if any, and ticks to suit; before labels are placed.

    A log axis that would begin at or below 0 begins at the least value drawn.
    """
    chosen = view.axis(along, figure)
    if chosen.scale is None and chosen.low is None and chosen.high is None:
        return
    axis = ax.xaxis if along == "x" else ax.yaxis
    scale = chosen.scale or axis.get_scale()
    low, high = axis.get_view_interval()
    low = low if chosen.low is None else chosen.low
    high = high if chosen.high is None else chosen.high
    if scale == "log" and low <= 0:
        if chosen.low is not None:
            raise ValueError(f"{figure}: its {along} axis is log and cannot begin at {low:g}; choose linear")
        drawn = np.concatenate([np.ravel(line.get_data()[along == "y"]) for line in ax.lines]).astype(float)
        low = float(drawn[drawn > 0].min())
    if scale == "log" and getattr(axis.get_transform(), "base", 10) == 2:
        context_axis(ax, low, high, ax.get_xlabel())
        return
    ticks, texts = round_ticks(low, high) if scale == "log" else ((t := linear_ticks(low, high)), numbers(t))
    steps = {f"{along}lim": (low, high), f"{along}scale": scale}  # a log axis takes no limit below zero at any moment
    ax.set(**steps if scale == "log" else dict(reversed(steps.items())))
    _ticks(axis, ticks, texts)


def _size(value: float) -> str:
    power = min(max(0, math.floor(math.log2(value) / 10)), len(_UNITS) - 1)
    return f"{value / 1024**power:g} {_UNITS[power]}"


def _limits(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value) and value > 0] or [1.0, 10.0]
    air = max((max(finite) / min(finite)) ** 0.07, 1.02)
    return min(finite) / air, max(finite) * air


def linear_ticks(low: float, high: float, fewest: int = 4) -> list[float]:
    """Multiples of the largest 1, 2 or 5 times a power of ten of which at least `fewest` lie within low … high."""
    power = 10.0 ** math.ceil(math.log10(high - low))
    ticks: list[float] = []
    for step in (m * power / 10**d for d in range(4) for m in (1, 0.5, 0.2)):
        ticks = [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        if len(ticks) >= fewest:
            break
    return ticks


def _ticks(axis: Axis, ticks: Sequence[float], texts: Sequence[str]) -> None:
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FixedFormatter(list(texts)))
    axis.set_minor_locator(NullLocator())


@dataclass(frozen=True)
class LineEnd:
    """Where a labelled line ends, in data coordinates."""

    text: str
    x: float
    y: float
    color: str


def settle(figure: Figure) -> None:
    """Lay the figure out once and for all: matplotlib draws one with a layout engine twice into every file."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)


def label_lines(figure: Figure, panels: Sequence[tuple[Axes, list[LineEnd]]]) -> None:
    """Lay the figure out with room for the labels, freeze the layout, and write each panel's labels. Call this last."""
    rooms = [
        ax.annotate(end.text, (1, 0.5), (9, 0), "axes fraction", "offset points", alpha=0)
        for ax, ends in panels
        for end in ends
    ]
    settle(figure)
    for room in rooms:
        room.remove()
    for ax, ends in panels:
        label_ends(ax, ends)


def label_ends(ax: Axes, ends: Sequence[LineEnd]) -> None:
    """Write each line's name to the right of the axes, level with its end where no other stands. Needs final limits."""
    ends = [end for end in ends if math.isfinite(end.y)]
    if not ends:
        return
    points = 72 / ax.figure.dpi
    box = ax.get_window_extent()
    places = ax.transData.transform([(end.x, end.y) for end in ends])
    wanted = np.clip(places[:, 1], box.y0, box.y1) * points
    placed = spread(wanted, LABEL_GAP, (box.y0 + 3) * points, (box.y1 - 3) * points)
    for end, place, want, y in zip(ends, places, wanted, placed, strict=True):
        x = box.x1 * points + 9
        leads = abs(y - want) > 1 or x - place[0] * points > 14
        ax.annotate(
            end.text, xy=(end.x, end.y), xytext=(x - place[0] * points, y - place[1] * points),
            textcoords="offset points", color=readable(end.color), va="center", ha="left", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.color, "lw": 0.5, "shrinkA": 1, "shrinkB": 2,
                        "relpos": (0, 0.5)} if leads else None,
        )  # fmt: skip


def spread(wanted: Floats, gap: float, low: float, high: float) -> Floats:
    """Positions at least `gap` apart within low … high, in the same order, with the least sum of squared moves.

    Less k · gap the positions need only not fall, which is isotonic regression: neighbours in conflict share a mean.
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    blocks: list[list[float]] = []
    for value in wanted[order] - steps:
        blocks.append([float(value)])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    means = np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])
    placed = np.empty(len(wanted))
    placed[order] = np.clip(means, low, max(low, high - steps[-1])) + steps
    return placed


def mark_failures(
    figure: Figure, panels: Sequence[Axes], run: Run, kind: str, shown: Callable[[Failure], bool] = lambda _: True
) -> None:
    """A cross on each panel's upper edge where a measurement failed, and a line below the panels that says which.

    Of the failures of this kind only those that are `shown` here.
    """
    failures = [failure for failure in run.absences(kind) if failure.kind != kind or shown(failure)]
    look = looks(run.models)
    if not failures:
        return
    for ax in panels:
        for failure in failures:
            if failure.kind == kind and failure.at is not None:
                ax.plot(
                    [failure.at], [1.0], "x", transform=ax.get_xaxis_transform(), clip_on=False, markersize=5,
                    markeredgewidth=1.2, color=look[failure.model].color if failure.model in look else GREY,
                )  # fmt: skip
    texts = [str(f) if f.kind == kind else f"{f.model}: {f.kind} {f.status}" for f in failures]
    told = [text[:60] for text in texts[:4]] + (["…"] if len(texts) > 4 else [])
    figure.supxlabel("× not measured: " + "; ".join(told), fontsize=7, color=GREY)
