"""What a cubin is made of: the instructions of a kernel's main loop, read from NVIDIA's disassembler.

The main loop is the backward branch that spans the most tensor-core instructions, the innermost if several do; without
any, the longest. What the compiler was meant to do there can be counted: HMMA are the products, BAR the meetings of all
warps, LDL and STL the registers that did not fit.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

LABEL = re.compile(r"\s*(\.L_x_\d+):")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)([^;]*);")


def disassembler() -> str | None:
    """Path of nvdisasm: on PATH, in CUDA_HOME, or brought by a Python package of NVIDIA's or by triton."""
    places = [f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"]
    for package, inside in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        roots = list(spec.submodule_search_locations or ()) if spec else []
        places += [str(folder) for root in roots for folder in sorted(Path(root).glob(inside))]
    return shutil.which("nvdisasm") or shutil.which("nvdisasm", path=os.pathsep.join(places))


def listing(cubin: bytes, tool: str) -> str:
    """The machine code of all kernels as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout


def main_loops(text: str) -> dict[str, Counter[str]]:
    """Instructions in the main loop of every kernel of a listing, counted by name."""
    parts = re.split(r"\.section\s+\.text\.", text)[1:]
    return {name.group(): _main_loop(part) for part in parts if (name := re.match(r"\w+", part))}


def _main_loop(part: str) -> Counter[str]:
    names: list[str] = []
    labels: dict[str, int] = {}
    loops: list[Counter[str]] = []
    for line in part.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(names)
        elif found := INSTRUCTION.match(line):
            names.append(found[1])
            target = re.search(r"\.L_x_\d+", found[2])
            if found[1] == "BRA" and target and target.group() in labels:
                loops.append(Counter(names[labels[target.group()] :]))
    products = max((loop["HMMA"] for loop in loops), default=0)
    return max(
        loops, key=lambda loop: (loop["HMMA"], -loop.total() if products else loop.total()), default=Counter(names)
    )
