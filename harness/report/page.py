"""From run folders to a report folder: figures, tables and one page that stands by itself.

The page needs no script and nothing from the network: style and figures lie inside it. All of it is a pure function of
the records and their NLL files, so it can be deleted and drawn again to the same bytes.
"""

from __future__ import annotations

import dataclasses
import html
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import jinja2
from markupsafe import Markup
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from harness import reference
from harness.report.adapting import Adapting, dynamic
from harness.report.against import Against, compare
from harness.report.benchmarks import benchmarks
from harness.report.collect import Run, collect
from harness.report.conditions import conditions, gate, job, provenance, tuning
from harness.report.contexts import Contexts
from harness.report.cost import quality_against_cost
from harness.report.curves import Curves
from harness.report.details import all_buckets, all_diagnostics, seeds
from harness.report.figures import draw
from harness.report.figures.axes import Drawn
from harness.report.latency import all_timings, decode_by_batch
from harness.report.likeness import require_alike
from harness.report.pooling import config_of
from harness.report.recall import Recall, recall, recall_cells
from harness.report.significance import context_gain, conventions, significance
from harness.report.summary import differences, summary
from harness.report.tables import Table, to_csv, to_latex, to_markdown
from harness.report.verdicts import against
from harness.report.view import AS_IS, View

Captioned = TypeVar("Captioned", Drawn, Table)

_TERMINAL = ("model", "ppl_trained", "ppl_longest", "bits_per_byte", "prefill", "decode_p50")


def render(folders: Path | Sequence[Path], allow_unlike: Sequence[str] = (), view: View = AS_IS) -> Path:
    """Draw the report of one run folder, or of several together; the path of its page.

    It lies in `report/` of the run folder, of the folder that several have in common, or of `view.out`. ValueError in
    one line where there are no records, or where models differ in what must be equal and `allow_unlike` does not name
    it.
    """
    several = _paths(folders)
    run, note = _read(several, allow_unlike, view)
    curves, contexts, adapting, recalled = Curves(run, view.per_octave), Contexts(run), Adapting(run), Recall(run)
    compared = compare(run, _references(several, view), config_of(several[0]))
    out = (view.out or Path(os.path.commonpath([folder.resolve() for folder in several]))) / "report"
    if (out / "report.html").exists():
        shutil.rmtree(out)
    for part in ("figures", "tables"):
        (out / part).mkdir(parents=True, exist_ok=True)
    drawn = draw(run, curves, contexts, adapting, recalled, compared, out / "figures", view)
    figures = [_noted(figure, note) for figure in drawn]
    tables = [_noted(table, note) for table in make_tables(run, curves, contexts, adapting, recalled, compared)]
    for table in tables:
        for ending, write in (("csv", to_csv), ("tex", to_latex), ("md", to_markdown)):
            (out / "tables" / f"{table.name}.{ending}").write_text(write(table), encoding="utf-8")
    (out / "summary.md").write_text(_markdown(run, figures, tables), encoding="utf-8")
    page = out / "report.html"
    page.write_text(_html(run, figures, tables, out), encoding="utf-8")
    return page


def _paths(folders: Path | Sequence[Path]) -> list[Path]:
    return [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]


def _read(folders: list[Path], allow_unlike: Sequence[str], view: View) -> tuple[Run, str]:
    """The chosen rows, and the sentence on what in them is not alike."""
    return require_alike(view.choose(collect(folders)), allow_unlike)


def _references(folders: list[Path], view: View) -> list[reference.Reference]:
    """The numbers to draw beside ours: those chosen, else those that the runs name in their config."""
    named = [view.reference] if view.reference else [config_of(folder).get("reference") for folder in folders]
    return [reference.load(name) for name in dict.fromkeys(named) if name]


def make_tables(
    run: Run, curves: Curves, contexts: Contexts, adapting: Adapting, recalled: Recall, compared: Sequence[Against]
) -> list[Table]:
    """Every table that the records allow, in the order of the page."""
    made = [
        summary(run, curves), *against(compared), quality_against_cost(run, curves), decode_by_batch(run),
        context_gain(run, contexts), differences(run, curves),
        significance(run, curves), conventions(run, curves), dynamic(run, adapting), recall(recalled),
        benchmarks(run), seeds(run, curves), gate(run), conditions(run), tuning(run), job(run), provenance(run),
        all_buckets(curves), all_timings(run), recall_cells(recalled), all_diagnostics(run),
    ]  # fmt: skip
    return [table for table in made if table is not None]


def terminal_summary(folders: Path | Sequence[Path], allow_unlike: Sequence[str] = (), view: View = AS_IS) -> RichTable:
    """The summary's most wanted columns at a terminal's width, with what failed below."""
    run, note = _read(_paths(folders), allow_unlike, view)
    table = summary(run, Curves(run, view.per_octave))
    shown = [i for i, column in enumerate(table.columns) if column.key in _TERMINAL]
    failures = "\n".join([*(f"not measured: {failure.kind}: {failure}" for failure in run.failures()), note]).strip()
    terminal = RichTable(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=Text(failures) if failures else None, caption_justify="left"
    )
    text = table.text(short=True)
    for i in shown:
        column, widest = table.columns[i], max(len(row[i]) for row in text)
        terminal.add_column(column.title, justify="left" if column.text else "right", min_width=min(widest, 14))
    for number, row in enumerate(text):
        style = "dim" if number >= len(run.models) else ("red" if number in table.marked else None)
        terminal.add_row(*(row[i] for i in shown), style=style, end_section=number == len(run.models) - 1)
    return terminal


def _noted(shown: Captioned, note: str) -> Captioned:
    """A table or figure whose caption ends with the note."""
    return dataclasses.replace(shown, caption=f"{shown.caption} {note}".strip())


def _title(run: Run) -> str:
    return "Comparison of " + ", ".join(run.models or run.floors)


def _markdown(run: Run, figures: list[Drawn], tables: list[Table]) -> str:
    failures = "".join(f"- not measured: {failure.kind}: {failure}\n" for failure in run.failures())
    parts = [f"# {_title(run)}\n", *([failures] if failures else [])]
    shown = [table for table in tables if not table.folded]
    parts += [to_markdown(table) for table in shown[:1]]
    parts += [f"![{figure.title}](figures/{figure.name}.png)\n\n{figure.caption}\n" for figure in figures]
    parts += [to_markdown(table) for table in shown[1:]]
    return "\n".join(parts)


def _html(run: Run, figures: list[Drawn], tables: list[Table], out: Path) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    drawings = [
        (figure, _inline(out / "figures" / f"{figure.name}.svg", figure.name, figure.title)) for figure in figures
    ]
    return environment.get_template("template.html").render(
        title=_title(run), run=run, figures=drawings, tables=tables, failures=run.failures()
    )


def _inline(path: Path, name: str, title: str) -> Markup:
    """The <svg> element of a drawing, its ids prefixed with the figure's name: ids are unique within a page."""
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    label = html.escape(title, quote=True)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))
