"""`python -m harness.bench`: our models against the same models elsewhere, on one CPU thread."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = """\
Times our models against other implementations of them (transformers, mambapy, the official TTT) and against a
Transformer of their size: training step, prefill, decoding; in turn, on one thread, by CPU time. Writes
records.jsonl and table.md. What is not installed is a row that says so.
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, 1 if a row failed, 2 with one line on stderr for what cannot be."""
    parser = argparse.ArgumentParser(prog="python -m harness.bench", description=DESCRIPTION)
    parser.add_argument("--official", type=Path, metavar="PATH", help="your copy of ttt.py of ttt-lm-pytorch")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only rows whose name has all of these in it")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (7; six are needed for intervals)")
    parser.add_argument("--quick", action="store_true", help="an eighth of every length: a minute or two")
    parser.add_argument("--out", type=Path, default=Path("results/runs/bench"), help="folder (results/runs/bench)")
    parser.add_argument("--list", action="store_true", help="print the names of all rows and stop")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    from harness.bench.cases import CASES
    from harness.bench.run import run

    cases = [case.shortened() for case in CASES] if options.quick else CASES
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    if options.rounds < 1:
        raise ValueError(f"--rounds {options.rounds}: must be at least 1")
    words = options.only or []
    chosen = [case for case in cases if all(word in case.name for word in words)]
    if not chosen:
        raise ValueError(f"--only {' '.join(words)}: no such row; choose words of {', '.join(c.name for c in cases)}")
    return run(chosen, options.official, options.rounds, options.out)


if __name__ == "__main__":
    sys.exit(main())
