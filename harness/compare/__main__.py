"""`python -m harness.compare A B`: what changed from run A to run B: config, provenance, results, and missing rows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.compare.origins import conditions, config, provenance
from harness.compare.rows import missing
from harness.compare.values import quality, speed, training
from harness.report.collect import collect
from harness.report.pooling import config_of
from harness.report.tables import to_text

DESCRIPTION = """\
Reads the records of two run folders and prints what differs: keys of the config, code, packages and machine, the
conditions of each model, and every value that both measured. Losses have a paired 95 % interval over documents where
both runs scored the same documents; times are ratios of medians.
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr where a folder has no records."""
    parser = argparse.ArgumentParser(prog="python -m harness.compare", description=DESCRIPTION)
    parser.add_argument("a", type=Path, metavar="A", help="a run folder")
    parser.add_argument("b", type=Path, metavar="B", help="another")
    given = parser.parse_args(arguments)
    try:
        text = compare(given.a, given.b)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    return 0


def compare(a: Path, b: Path) -> str:
    """The whole comparison as text; ValueError in one line where a folder has no records."""
    runs = collect([a]), collect([b])
    tables = [
        config(config_of(a), config_of(b)), provenance(*runs), conditions(*runs), training(*runs), quality(*runs),
        speed(*runs), missing(*runs),
    ]  # fmt: skip
    shown = [to_text(table) for table in tables if table.rows]
    equal = [table.title for table in tables if not table.rows]
    parts = [f"A  {a}\nB  {b}", *shown]
    if equal:
        parts.append(f"Nothing to tell: {', '.join(equal)}.")
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
