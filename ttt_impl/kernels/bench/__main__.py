"""The command: correctness first, then times; records and a table in a folder."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ttt_impl.kernels.bench.candidates import candidates
from ttt_impl.kernels.bench.clock import Clock, CudaClock, measured_ceilings, take_turns
from ttt_impl.kernels.bench.correctness import check_all
from ttt_impl.kernels.bench.floors import Ceilings, floors
from ttt_impl.kernels.bench.records import Ceiling, Check, Record, Timing, provenance, read, write
from ttt_impl.kernels.bench.table import markdown, passed
from ttt_impl.kernels.bench.work import Work, plan


def main(arguments: list[str]) -> int:
    """Exit status 0: all kernels are right; 1: some are not; 2: there is nothing to run on."""
    parser = argparse.ArgumentParser(prog="python -m ttt_impl.kernels.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one length and two batch sizes, under two minutes")
    parser.add_argument("--official", type=Path, metavar="PATH", help="a built checkout of ttt-lm-kernels to time too")
    parser.add_argument("--out", type=Path, default=Path("kernel-bench"), help="folder of records.jsonl and table.md")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("the benchmark of the kernels needs a CUDA device, and torch finds none", file=sys.stderr)
        return 2
    if options.official is not None and not options.official.is_dir():
        print(f"--official {options.official} is no folder; valid: a checkout of ttt-lm-kernels", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "records.jsonl"
    file.unlink(missing_ok=True)
    for record in run(torch.device("cuda", torch.cuda.current_device()), options.quick, options.official):
        write(file, [record])
    records = read(file)
    (options.out / "table.md").write_text(markdown(records))
    print(markdown(records))
    return int(any(not passed(record) for record in records if isinstance(record, Check)))


def run(device: torch.device, quick: bool, checkout: Path | None) -> Iterator[Record]:
    """The records of a run, as they come."""
    clock = CudaClock()
    yield provenance(device)
    ceilings = Ceilings(*measured_ceilings(clock, device))
    yield Ceiling(*ceilings)
    yield from check_all(device, quick)
    for work in plan(quick):
        yield from compare(work, ceilings, clock, device, checkout, seconds=0.05 if quick else 0.3)
        torch.cuda.empty_cache()


def compare(
    work: Work, ceilings: Ceilings, clock: Clock, device: torch.device, checkout: Path | None, seconds: float
) -> Iterator[Timing]:
    """All candidates of a piece of work, in turns."""
    calls, missing = candidates(work, device, checkout)
    times = take_turns(calls, clock, seconds)
    bounds = floors(work, ceilings)._asdict()
    for name in (*calls, *missing):
        found = times.get(name)
        reason = missing.get(name, "") if found is None else found.failure
        yield Timing(
            *work[:4], work.heads, work.width, name, work.tokens, bounds, found.seconds if found else [], reason
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
