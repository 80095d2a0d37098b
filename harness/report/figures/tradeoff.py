"""Quality against cost: one point a model, so that 'better' and 'cheaper' are seen together."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from harness.records import Decode, Prefill
from harness.report.collect import Run
from harness.report.curves import Curves
from harness.report.figures.axes import Drawn, mark_failures, rescale, settle, value_axis
from harness.report.formats import Interval
from harness.report.style import GREY, SINGLE, looks, readable
from harness.report.summary import at, describe, exponential, headlines
from harness.report.timings import Timing, longest_common, timings
from harness.report.view import AS_IS, View

_SIDES = [(4, 3, "left", "bottom"), (4, -3, "left", "top"), (-4, 3, "right", "bottom"), (-4, -3, "right", "top")]


def quality_cost(run: Run, curves: Curves, view: View = AS_IS) -> Drawn | None:
    """Perplexity at the training length against decode ms/token, or against prefill time where nothing was decoded."""
    kind: type[Decode] | type[Prefill] = Decode if any(timings(run, Decode, name) for name in run.models) else Prefill
    found = {name: timings(run, kind, name) for name in run.models}
    length = longest_common(found)
    names = [name for name in run.models if name in curves.names and length in found[name]]
    if length is None or not names:
        return None
    heads = {head.key: head for head in headlines(curves)}
    head = heads.get("trained", heads["longest"])
    quality = {name: exponential(at(curves.log_perplexity(name), head.bucket[name])) for name in names}
    figure = Figure(figsize=(SINGLE, 2.7), layout="constrained")
    ax = figure.subplots()
    costs = {name: found[name][length] for name in quality}
    _points(ax, run, costs, quality)
    for along in ("x", "y"):
        rescale(ax, along, view, "quality-cost")
    _frontier(ax, costs, quality)
    cost = "decode ms/token" if kind is Decode else "prefill time (ms)"
    ax.set_xlabel(f"{cost} at {length} tokens")
    ax.set_ylabel(f"perplexity per {curves.unit} {head.title}")
    ax.annotate("better", (0.0, 0.0), (10, 9), "axes fraction", "offset points", color=GREY, fontsize=7,
                arrowprops={"arrowstyle": "->", "color": GREY, "lw": 0.7})  # fmt: skip
    mark_failures(figure, [], run, kind.kind)
    _name_points(figure, ax, run, costs, quality)
    caption = (
        f"Perplexity per {curves.unit} {head.title} of context against {cost} at {length} tokens (bars: 10th to 90th "
        f"percentile); dotted: the models that no other beats in both. {describe(curves)}."
    )
    return Drawn("quality-cost", "Quality against cost", caption, figure)


def _points(ax: Axes, run: Run, costs: dict[str, Timing], quality: dict[str, Interval]) -> None:
    look = looks(run.models)
    for name, value in quality.items():
        color, marker = look[name]
        timing = costs[name]
        ax.vlines([timing.milliseconds(50)], value.low, value.high, color=color, linewidth=0.9)
        ax.hlines([value.value], timing.milliseconds(10), timing.milliseconds(90), color=color, linewidth=0.9)
        ax.plot([timing.milliseconds(50)], [value.value], marker, color=color, markersize=5)
    value_axis(ax, [end for value in quality.values() for end in (value.low, value.value, value.high)])
    value_axis(ax, [timing.milliseconds(p) for timing in costs.values() for p in (10, 90)], along="x")


def _frontier(ax: Axes, costs: dict[str, Timing], quality: dict[str, Interval]) -> None:
    """A stepped line through the models that no other beats in both respects."""
    points = sorted((costs[name].milliseconds(50), value.value) for name, value in quality.items())
    best = [point for i, point in enumerate(points) if all(point[1] < other[1] for other in points[:i])]
    ax.step(*zip(*best, strict=True), where="post", color=GREY, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)


def _name_points(figure: Figure, ax: Axes, run: Run, costs: dict[str, Timing], quality: dict[str, Interval]) -> None:
    """Write each name beside its point, on the first side where it hits neither another point nor another name."""
    look, canvas = looks(run.models), FigureCanvasAgg(figure)
    settle(figure)
    places = {
        name: ax.transData.transform((costs[name].milliseconds(50), value.value)) for name, value in quality.items()
    }
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places.values()]
    taken += [bars.get_window_extent(canvas.get_renderer()) for bars in ax.collections]
    margin = 5
    for name, value in quality.items():
        boxes: list[tuple[int, int, Text, Bbox]] = []
        for dx, dy, horizontal, vertical in _SIDES:
            text = ax.annotate(
                name, (costs[name].milliseconds(50), value.value), (dx, dy), textcoords="offset points",
                ha=horizontal, va=vertical, color=readable(look[name].color), annotation_clip=False,
            )  # fmt: skip
            box = text.get_window_extent(canvas.get_renderer())
            hits = sum(box.overlaps(other) for other in taken) + (box.x0 < margin) + (box.x1 > figure.bbox.x1 - margin)
            text.remove()
            boxes.append((hits, len(boxes), text, box))
        _, _, best, box = min(boxes, key=lambda found: found[:2])
        ax.add_artist(best)
        taken.append(box)
