"""`python -m harness.report FOLDER…`: draw the report of a run folder again, or of several runs together."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from rich.console import Console

from harness.report import render, terminal_summary
from harness.report.view import FIGURES, SMOOTH, View, parse_axis

DESCRIPTION = f"""\
Draws tables, figures and page from records. Several folders are one comparison: seeds of the same model are pooled,
different models of a name are told apart by the names of their runs. An AXIS is [FIGURE=][SCALE][:LOW:HIGH], of every
figure or of one ({", ".join(FIGURES)}): log, training=log, perplexity=linear:2:6, prefill=:100:10000; y is that of the
left panel.
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr where there is nothing to draw."""
    given = _parser().parse_args([_as_flag(argument) for argument in arguments or sys.argv[1:]])
    try:
        view = View(
            given.models, [parse_axis(text) for text in given.x], [parse_axis(text) for text in given.y],
            given.smooth, given.per_octave, given.reference, given.out,
        )  # fmt: skip
        page = render(given.folder, given.allow_unlike, view)
        table = terminal_summary(given.folder, given.allow_unlike, view)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console()
    console.print(table)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.report", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, nargs="+", help="a run folder; several are drawn together")
    add(
        "--allow-unlike", type=_listed, default=[], metavar="KEY,KEY",
        help="draw models side by side that differ in these keys, marked; also written allow_unlike=[KEY,KEY]",
    )  # fmt: skip
    add("--models", type=_listed, default=[], metavar="A,B", help="these models alone, in this order")
    add("--x", action="append", default=[], metavar="AXIS", help="scale and limits of x axes; may be given again")
    add("--y", action="append", default=[], metavar="AXIS", help="the same for y axes")
    add(
        "--smooth", type=float, default=SMOOTH, metavar="SHARE",
        help=f"share of a training that its loss is averaged over ({SMOOTH:g}; 0: not at all)",
    )  # fmt: skip
    add("--per-octave", type=int, default=2, metavar="N", help="points a doubling of context (2); fewer are smoother")
    add("--reference", metavar="NAME", help="numbers of a paper to draw beside ours (else what the run names)")
    add("--out", type=Path, metavar="FOLDER", help="where to put report/ (else beside the records)")
    return parser


def _listed(text: str) -> list[str]:
    return [word for word in text.strip("[]").split(",") if word]


def _as_flag(argument: str) -> str:
    """`allow_unlike=[key]`, as in a config, for `--allow-unlike=key`; `reference=` and `models=` alike."""
    match = re.match(r"(allow_unlike|reference|models)=", argument)
    return f"--{argument.replace('_', '-', 1) if match[1] == 'allow_unlike' else argument}" if match else argument


if __name__ == "__main__":
    sys.exit(main())
