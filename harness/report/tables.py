"""A table as data: raw cells under named columns, written as CSV (raw), LaTeX, markdown and HTML text (formatted).

CSV is for machines: an interval becomes three columns and a number keeps ten digits, which is as far as sums agree
between machines. The other forms show what the formatter of the column makes of the cell, so that all of them say the
same.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.records import Check
from harness.report.formats import MISSING, Interval, interval, plus_minus


def plain(cell: Any) -> str:
    """A cell as it is; a dash where there is none."""
    return MISSING if cell is None else str(cell)


@dataclass(frozen=True)
class Column:
    """`key` heads the column in CSV, `title` elsewhere; `show` formats a cell; text stands left, numbers right."""

    key: str
    title: str
    show: Callable[[Any], str] = plain
    text: bool = False


@dataclass(frozen=True)
class Table:
    """Rows are dicts by column key, a missing key an empty cell; `marked` rows stand out; a rule before row `rule`."""

    name: str
    title: str
    caption: str
    columns: list[Column]
    rows: list[dict[str, Any]]
    marked: frozenset[int] = frozenset()
    rule: int | None = None
    folded: bool = False

    def text(self, short: bool = False) -> list[list[str]]:
        """The formatted cells, row by row; `short` writes intervals as ±."""
        shows = [plus_minus if short and column.show is interval else column.show for column in self.columns]
        return [
            [show(row.get(column.key)) for show, column in zip(shows, self.columns, strict=True)] for row in self.rows
        ]


def to_csv(table: Table) -> str:
    """Raw cells; Interval and Check spread over columns of their own."""
    rows = [_spread(table.columns, row) for row in table.rows]
    header = list(dict.fromkeys(key for row in rows for key in row)) or [column.key for column in table.columns]
    out = io.StringIO()
    writer = csv.DictWriter(out, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _spread(columns: list[Column], row: dict[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for column in columns:
        match row.get(column.key):
            case Interval(value, low, high):
                cells |= {column.key: value, f"{column.key}_low": low, f"{column.key}_high": high}
            case Check(_, passed, value, bound):
                cells |= {column.key: value, f"{column.key}_bound": bound, f"{column.key}_passed": passed}
            case cell:
                cells[column.key] = cell
    return {key: f"{cell:.10g}" if isinstance(cell, float) else cell for key, cell in cells.items()}


def to_markdown(table: Table) -> str:
    """A pipe table with its title and caption."""
    lines = [
        [column.title for column in table.columns],
        ["---" if column.text else "---:" for column in table.columns],
        *table.text(),
    ]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"**{table.title}.** {table.caption}\n\n{body}\n"


def to_text(table: Table) -> str:
    """Aligned columns for a terminal, under title and caption."""
    lines = [[column.title for column in table.columns], *table.text()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    lines.insert(1, ["─" * width for width in widths])
    aligned = [
        [
            cell.ljust(width) if column.text else cell.rjust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        ]
        for line in lines
    ]
    body = "\n".join("  ".join(line).rstrip() for line in aligned)
    return f"{table.title}. {textwrap.fill(table.caption, 110)}\n\n{body}"


def to_latex(table: Table) -> str:
    """A booktabs tabular (needs \\usepackage{booktabs}), ready for \\input; the caption stands above as a comment."""
    spec = "".join("l" if column.text else "r" for column in table.columns)
    lines = [" & ".join(_escape(cell) for cell in row) + r" \\" for row in table.text()]
    if table.rule:
        lines.insert(table.rule, r"\midrule")
    head = " & ".join(_escape(column.title) for column in table.columns) + r" \\"
    body = [f"\\begin{{tabular}}{{{spec}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]
    return f"% {table.title}. {table.caption}\n" + "\n".join(body) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "×": r"$\times$", "≤": r"$\le$",
    "Δ": r"$\Delta$", "∞": r"$\infty$", "✗": r"$\times$", "·": r"$\cdot$", "…": r"\dots{}",
    "<": "$<$", ">": "$>$", "[": "{[}", "η": r"$\eta$", "†": r"\dag{}",
}  # fmt: skip


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
