"""The figures of a report, each drawn from records alone and written as SVG, PNG and PDF.

Matplotlib's object interface with no pyplot: no global state, no window system. Nothing that changes from one drawing
to the next (dates, random ids) enters the files, so the same records give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.style

from harness.report.adapting import Adapting
from harness.report.against import Against
from harness.report.collect import Run
from harness.report.contexts import Contexts
from harness.report.curves import Curves
from harness.report.figures.adapting import dynamic
from harness.report.figures.against import against
from harness.report.figures.axes import Drawn, settle
from harness.report.figures.cost import decode, decode_batch, first_token, prefill
from harness.report.figures.diagnostics import diagnostics
from harness.report.figures.quality import fixed_target, position
from harness.report.figures.recall import recall_map, recall_slices
from harness.report.figures.tradeoff import quality_cost
from harness.report.figures.training import training
from harness.report.recall import Recall
from harness.report.style import STYLE
from harness.report.view import View

_METADATA = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}


def draw(
    run: Run, curves: Curves, contexts: Contexts, adapting: Adapting, recalled: Recall, compared: list[Against],
    folder: Path, view: View,
) -> list[Drawn]:  # fmt: skip
    """Draw every figure that the records allow into `folder`, each as NAME.svg, NAME.png and NAME.pdf."""
    with matplotlib.style.context(STYLE, after_reset=True):
        made = [
            *against(compared), position(run, curves, view), fixed_target(run, contexts, view), prefill(run, view),
            first_token(run, view), decode(run, view), decode_batch(run, view), training(run, curves, view),
            quality_cost(run, curves, view), dynamic(run, adapting, view), recall_slices(run, recalled),
            recall_map(run, recalled), diagnostics(run),
        ]  # fmt: skip
        drawn = [figure for figure in made if figure is not None]
        for figure in drawn:
            if figure.figure.get_layout_engine():
                settle(figure.figure)
            for kind, metadata in _METADATA.items():
                figure.figure.savefig(folder / f"{figure.name}.{kind}", metadata=metadata)
    return drawn
