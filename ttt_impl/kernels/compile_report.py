"""What the compiler makes of every kernel, against what was meant; the table of the README.

    python -m ttt_impl.kernels.compile_report                    all head dimensions, sm_80 to sm_120; some minutes
    python -m ttt_impl.kernels.compile_report sm_90a             only these architectures

Registers decide how many CTAs live on a multiprocessor, spills and barriers how long a mini-batch takes. A kernel
beyond its `GATES` makes the exit status 1. Needs nvcc; instructions are counted where nvdisasm is found.
"""

import re
import sys
from collections import Counter
from typing import NamedTuple

from ttt_impl.kernels.arguments import KERNELS
from ttt_impl.kernels.compiler import SOURCES, CompileError, flattened, nvcc
from ttt_impl.kernels.machine_code import disassembler, listing, main_loops

ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120")


class Gate(NamedTuple):
    """Limits of a kernel at one head dimension."""

    registers: int
    """What lets the wished-for number of CTAs live on a multiprocessor."""
    spilled: int = 0
    """Bytes stored on the stack."""
    barriers: int | None = None
    """Of all warps, a mini-batch; None: not asked."""
    products: bool = True
    """Whether the tensor cores have to be used."""


GATES = {
    ("ttt_linear_fwd", 64): Gate(168, barriers=1),
    ("ttt_linear_fwd", 96): Gate(168, barriers=1),
    ("ttt_linear_fwd", 128): Gate(255, barriers=1),
    ("ttt_linear_fwd_wide", 64): Gate(255, barriers=1),
    ("ttt_linear_bwd", 64): Gate(255, 64, barriers=4),
    ("ttt_linear_bwd", 96): Gate(255, 64, barriers=4),
    ("ttt_linear_bwd", 128): Gate(255, 256, barriers=4),
    ("ttt_linear_decode", 64): Gate(128, products=False),
    ("ttt_mlp_fwd", 64): Gate(255, 160, barriers=2),
    ("ttt_mlp_decode", 64): Gate(128, 32, products=False),
}
"""Kernels that are not named here are reported."""


class Row(NamedTuple):
    """A kernel as compiled."""

    kernel: str
    width: int
    arch: str
    registers: int
    spilled: int
    loop: Counter[str] | None
    """Instructions of the main loop; None without nvdisasm."""

    def complaints(self) -> list[str]:
        """Where it goes beyond its gate."""
        gate = GATES.get((self.kernel, self.width))
        if gate is None:
            return []
        found = [
            ("registers", self.registers, gate.registers),
            ("bytes spilled", self.spilled, gate.spilled),
        ]
        if self.loop is not None:
            found.append(
                ("words of the stack in the main loop", self.loop["LDL"] + self.loop["STL"], gate.spilled // 2)
            )
            found.append(("barriers in the main loop", self.loop["BAR"], gate.barriers or 99))
            found.append(("main loops without a product", int(gate.products and not self.loop["HMMA"]), 0))
        where = f"{self.kernel}, head dimension {self.width}, {self.arch}"
        return [f"{where}: {value} {what}, allowed {limit}" for what, value, limit in found if value > limit]


def sources() -> dict[str, tuple[int, ...]]:
    """Every source file and the head dimensions that it is compiled for."""
    widths = {kernel.source: kernel.widths for kernel in reversed(KERNELS.values())}
    return {file.name: widths.get(file.name, (64,)) for file in sorted(SOURCES.glob("*.cu"))}


def compiled(source: str, width: int, arch: str) -> list[Row]:
    """The kernels of a source file, as nvcc makes them."""
    code, log = nvcc(flattened(source), width, arch)
    tool = disassembler()
    loops = main_loops(listing(code, tool)) if tool else {}
    return [Row(name, width, arch, registers, spilled, loops.get(name)) for name, registers, spilled in reported(log)]


def reported(log: str) -> list[tuple[str, int, int]]:
    """Name, registers and bytes spilled of every kernel in the assembler's report."""
    names = re.findall(r"entry function '(\w+)'", log)
    registers = map(int, re.findall(r"Used (\d+) registers", log))
    spills = map(int, re.findall(r"(\d+) bytes spill stores", log))
    return list(zip(names, registers, spills, strict=True))


def table(rows: list[Row]) -> str:
    """Markdown; architectures side by side."""
    archs = list(dict.fromkeys(row.arch for row in rows))
    head = f"| kernel | head dim | registers, {' / '.join(archs)} | bytes spilled | main loop, {archs[-1]} |"
    lines = [head, "|---|---|---|---|---|"]
    for kernel, width in sorted({(row.kernel, row.width) for row in rows}):
        here = [row for row in rows if (row.kernel, row.width) == (kernel, width)]
        loop = here[-1].loop
        mix = (
            "nvdisasm not found"
            if loop is None
            else f"{loop.total()} instructions, {loop['HMMA']} HMMA, {loop['BAR']} BAR"
        )
        registers, spilled = (_slashes([getattr(row, name) for row in here]) for name in ("registers", "spilled"))
        lines.append(f"| `{kernel}` | {width} | {registers} | {spilled} | {mix} |")
    return "\n".join(lines)


def _slashes(numbers: list[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else " / ".join(map(str, numbers))


def main(archs: list[str]) -> int:
    """Compile, print the table, then what is beyond its gate."""
    try:
        rows = [
            row
            for source, widths in sources().items()
            for width in widths
            for arch in archs or ARCHITECTURES
            for row in compiled(source, width, arch)
        ]
    except CompileError as error:
        print(error, file=sys.stderr)
        return 2
    complaints = [line for row in rows for line in row.complaints()]
    print("\n".join([table(rows), "", *complaints]))
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
