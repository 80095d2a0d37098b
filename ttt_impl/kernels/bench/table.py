"""The tables of a run, drawn from its records and nothing else."""

from itertools import groupby
from statistics import median

from ttt_impl.kernels.bench.records import Ceiling, Check, Provenance, Record, Timing


def markdown(records: list[Record]) -> str:
    """Where it ran, what is right, what is how fast."""
    lines = ["# Kernels on a GPU", ""]
    for record in records:
        if isinstance(record, Provenance):
            lines.append(
                f"{record.device} (compute capability {record.capability}, driver {record.driver}), "
                f"torch {record.torch}, CUDA {record.cuda}, commit {record.commit}, {record.time}."
            )
        if isinstance(record, Ceiling):
            lines.append(
                f"Measured: copies {record.copy_bytes_per_second / 1e12:.2f} TB/s, "
                f"bf16 products {record.product_flops_per_second / 1e12:.0f} TFLOP/s."
            )
    lines += ["", *checks([r for r in records if isinstance(r, Check)])]
    return "\n".join([*lines, *timings([r for r in records if isinstance(r, Timing)]), ""])


def checks(records: list[Check]) -> list[str]:
    """The worst error over its bound of each kernel; what failed by name."""
    lines = ["| kernel | head dim | checks | worst error / bound | |", "|---|---|---|---|---|"]
    for (kernel, width), group in groupby(records, key=lambda r: (r.kernel, r.width)):
        rows = list(group)
        ratios = [r.error / r.bound for r in rows if r.error is not None and r.bound]
        failures = [
            f"{r.what} at {r.length} tokens{': ' + r.reason if r.reason else ''}" for r in rows if not passed(r)
        ]
        worst = f"{max(ratios):.2f}" if ratios else ""
        lines.append(f"| `{kernel}` | {width} | {len(rows)} | {worst} | {'; '.join(failures)} |")
    return lines if records else []


def passed(record: Check) -> bool:
    """Whether the error is within its bound."""
    return record.error is not None and record.bound is not None and record.error <= record.bound


def timings(records: list[Timing]) -> list[str]:
    """A table a piece of work."""
    lines: list[str] = []
    for key, group in groupby(records, key=lambda r: (r.learner, r.task, r.batch, r.length, r.heads, r.width)):
        learner, task, batch, length, heads, width = key
        lines += ["", f"**TTT-{learner} {task}**, batch {batch}, length {length}, {heads} heads of {width}", ""]
        lines += ["| | µs | tokens/s | memory floor | tensor floor | latency floor |", "|---|---|---|---|---|---|"]
        lines += [_row(record) for record in group]
    return lines


def _row(record: Timing) -> str:
    if not record.seconds:
        return f"| {record.candidate} | {record.reason} | | | | |"
    time = median(record.seconds)
    shares = [_share(record, name, time) for name in ("memory", "tensor", "latency")]
    return f"| {record.candidate} | {1e6 * time:.1f} | {record.tokens / time:,.0f} | {' | '.join(shares)} |"


def _share(record: Timing, name: str, time: float) -> str:
    """Floor over time, which is 1 for a kernel that cannot be improved; the floors are those of TTT."""
    floor = record.floors[name]
    return "" if floor is None or not record.candidate.startswith("fused-cuda") else f"{100 * floor / time:.0f} %"
