"""`python -m harness.report FOLDER…`: draw the report of a run folder again, or one of several seeds' folders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from harness.report import render, terminal_summary


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr where there is nothing to draw."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.report", description="Draw tables, figures and page from records."
    )
    parser.add_argument("folder", type=Path, nargs="+", help="a run folder; several are the seeds of one comparison")
    folders = parser.parse_args(arguments).folder
    try:
        page, table = render(folders), terminal_summary(folders)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console()
    console.print(table)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
