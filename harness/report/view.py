"""What a reader may choose of a report without editing code: models, axes, smoothing, a paper's numbers, the place.

Nothing chosen is the report as it is drawn at the end of a run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.report.collect import Run

FIGURES = (
    "perplexity", "fixed-target", "prefill", "first-token", "decode", "decode-batch", "training", "quality-cost",
    "adapting",
)  # fmt: skip
"""Those whose axes can be chosen."""
SCALES = ("log", "linear")
SMOOTH = 0.05


@dataclass(frozen=True)
class Axis:
    """A chosen scale and limits, each None where it stays as it is; of one `figure`, or of all where that is ''."""

    figure: str = ""
    scale: str | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class View:
    """The choices of `python -m harness.report`; `smooth` is the share of a training over which its loss is averaged.

    `per_octave` is how many points a curve against context has for each doubling: fewer are smoother.
    """

    models: Sequence[str] = ()
    x: Sequence[Axis] = ()
    y: Sequence[Axis] = ()
    smooth: float = SMOOTH
    per_octave: int = 2
    reference: str | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.smooth < 1:
            raise ValueError(f"--smooth {self.smooth:g}: a share of the training, at least 0 and below 1")
        if self.per_octave < 1:
            raise ValueError(f"--per-octave {self.per_octave}: at least 1")

    def axis(self, along: str, figure: str) -> Axis:
        """What was chosen for the x or y axis of a figure; what names the figure goes before what names none."""
        chosen = {axis.figure: axis for axis in (self.x if along == "x" else self.y)}
        return chosen.get(figure, chosen.get("", Axis()))

    def choose(self, run: Run) -> Run:
        """The chosen models in the order they were named, floors as they are; ValueError for one that is not there."""
        if not self.models:
            return run
        if unknown := [name for name in self.models if name not in run.models]:
            raise ValueError(f"--models {','.join(unknown)}: not in these records; choose from {', '.join(run.models)}")
        kept = {*self.models, *run.floors}
        rows = [row for row in run.rows if row.record.model in kept]
        seeds = sorted({row.record.seed for row in rows if row.record.model not in run.floors})
        return dataclasses.replace(run, rows=rows, models=list(dict.fromkeys(self.models)), seeds=seeds)


AS_IS = View()


def parse_axis(text: str) -> Axis:
    """An axis as it is written, `[FIGURE=][SCALE][:LOW:HIGH]`: log, training=log, perplexity=linear:2:6, decode=:1:50.

    ValueError in one line for anything else; a limit that is left empty stays.
    """
    figure, _, rest = text.rpartition("=")
    scale, *ends = rest.split(":")
    if figure and figure not in FIGURES:
        raise ValueError(f"{text}: no figure {figure} with axes to choose; choose from {', '.join(FIGURES)}")
    if scale not in ("", *SCALES) or len(ends) not in (0, 2):
        raise ValueError(f"{text}: write [FIGURE=][SCALE][:LOW:HIGH] with a scale of {' or '.join(SCALES)}")
    try:
        low, high = (float(end) if end else None for end in (ends or ("", "")))
    except ValueError:
        raise ValueError(f"{text}: limits are numbers") from None
    if not (low if low is not None else -math.inf) < (high if high is not None else math.inf):
        raise ValueError(f"{text}: the lower limit must lie below the upper")
    if scale == "log" and low is not None and low <= 0:
        raise ValueError(f"{text}: a log axis begins above 0")
    return Axis(figure, scale or None, low, high)
