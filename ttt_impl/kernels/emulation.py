"""The kernels on a CPU: the same .cu files compiled by g++ against `emulator.h`, every CUDA thread a fiber.

Thousands of times slower than a GPU and made for proof, not for work: operators given CPU tensors run here, so that
their mathematics, their races and their wiring into torch can be tested anywhere.
"""

import ctypes
import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ttt_impl.cpu.build import BuildError, compile_to
from ttt_impl.kernels.arguments import KERNELS, Arguments
from ttt_impl.kernels.compiler import SOURCES

FLAGS = (
    "-std=c++17", "-O1", "-DTTT_EMULATE", "-shared", "-fPIC", "-fno-gnu-unique", "-U_FORTIFY_SOURCE",
    "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
)  # fmt: skip


def available() -> bool:
    """Whether there is a compiler to build with."""
    return shutil.which("g++") is not None


def build(source: str, width: int, target: Path) -> ctypes.CDLL:
    """Compile the text of a .cu file into the library `target` and load it."""
    if not available():
        raise RuntimeError("emulating kernels needs g++, which was not found on PATH")
    text = target.with_suffix(".cu")
    text.write_text(source)
    try:
        compile_to(target, text, ["g++", "-x", "c++", *FLAGS, f"-DHEAD_DIM={width}", f"-I{SOURCES}"])
    except BuildError as error:
        raise RuntimeError(str(error)) from None
    return ctypes.CDLL(str(target))


@functools.cache
def library(source: str, width: int) -> ctypes.CDLL:
    """The library of a source file; built once a process."""
    target = Path(_folder().name, f"{Path(source).stem}_{width}.so")
    return build((SOURCES / source).read_text(), width, target)


def launch(kernel: str, width: int, ctas: int, arguments: Arguments) -> None:
    """Run `ctas` CTAs one after the other."""
    emulator = library(KERNELS[kernel].source, width)
    emulator.emulator_configure(*_schedule)
    getattr(emulator, kernel)(ctas, ctypes.byref(arguments))


@contextmanager
def schedule(order: int = 0, eager: int = 0, truncate: int = 0) -> Iterator[None]:
    """How threads take turns, copies land and sums round inside the block; see `emulator.h`."""
    global _schedule
    before, _schedule = _schedule, (order, eager, truncate)
    try:
        yield
    finally:
        _schedule = before


_schedule = (0, 0, 0)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ttt-emulation-")
