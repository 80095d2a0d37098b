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
    parser.add_argument(
        "--allow-unlike", type=lambda keys: keys.strip("[]").split(","), default=[], metavar="KEY,KEY",
        help="draw models side by side that differ in these keys, marked; also written allow_unlike=[KEY,KEY]",
    )  # fmt: skip
    given = parser.parse_args([_as_flag(argument) for argument in arguments or sys.argv[1:]])
    try:
        page = render(given.folder, given.allow_unlike)
        table = terminal_summary(given.folder, given.allow_unlike)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console()
    console.print(table)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return 0


def _as_flag(argument: str) -> str:
    """`allow_unlike=[key]`, as in a config, for `--allow-unlike=key`."""
    return argument.replace("allow_unlike=", "--allow-unlike=", 1) if argument.startswith("allow_unlike=") else argument


if __name__ == "__main__":
    sys.exit(main())
