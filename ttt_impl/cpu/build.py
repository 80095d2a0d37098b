"""From a .cpp file to functions that Python calls, without a build step at install and without torch's headers.

The machine's own compiler knows the machine's own vectors, so the operators are compiled where they run, at first use:
a second or so, once a machine, since the library is kept in the user's cache folder under a hash of all that made it.
Functions take pointers (`tensor.data_ptr()`) through ctypes. To torch.compile these would be constants; who calls one
is kept out of its graphs (`torch.compiler.disable`). Where nothing can be compiled, `library` answers None and says why
in one warning; who asked then computes with plain PyTorch.

The sources spell their vectors and the order of their sums out (`vector.h`), so the compiler needs no -ffast-math: NaN
and infinity stay visible, and the same machine computes the same bits.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

OFF = "TTT_BENCH_NO_COMPILE"
"""Set to 1, this environment variable forbids to compile."""
FLAGS = (
    "-std=c++17", "-O3", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
    "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi", f"-I{Path(__file__).parent}",
)  # fmt: skip
EXTRAS = (("-march=native", "-fopenmp"), ("-march=native",), ())
"""Tried in turn: not every compiler brings OpenMP, or knows its own machine."""


class BuildError(Exception):
    """Why there is no library, in one line."""


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """The library of a .cpp file, compiled unless the cache has it; None, with a warning, where that fails."""
    try:
        return ctypes.CDLL(str(cached(source)))
    except (BuildError, OSError) as error:
        _warn_once(str(error))
        return None


@torch.compiler.assume_constant_result
def available(source: Path) -> bool:
    """Whether there is a library of a .cpp file; for torch.compile a constant."""
    return library(source) is not None


def cached(source: Path) -> Path:
    """Path of the compiled library."""
    if os.environ.get(OFF, "0") not in ("", "0"):
        raise BuildError(f"{OFF} is set")
    command, folder = compiler(), cache_folder()
    reasons = []
    for extra in EXTRAS:
        target = folder / f"{source.stem}-{_fingerprint(source, (*command, *FLAGS, *extra))}.so"
        if target.exists():
            return target
        try:
            compile_to(target, source, [*command, *FLAGS, *extra])
            return target
        except BuildError as error:
            reasons.append(str(error))
    raise BuildError(reasons[0])


def compile_to(target: Path, source: Path, command: list[str]) -> None:
    """Compile under a name of its own and rename, so that other processes see the whole library or none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=target.stem) as folder:
        fresh = Path(folder, target.name)
        done = subprocess.run([*command, "-o", str(fresh), str(source)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{command[0]}: {first_complaint(done.stderr)}")
        fresh.replace(target)


def compiler() -> list[str]:
    """The command of the C++ compiler: $CXX, or the first on PATH."""
    names = [shlex.split(os.environ.get("CXX", "")), ["g++"], ["clang++"], ["c++"]]
    found = next((name for name in names if name and shutil.which(name[0])), None)
    if found is None:
        raise BuildError("no C++ compiler on PATH (g++, clang++, c++) or in CXX")
    return found


def cache_folder() -> Path:
    """Where libraries are kept: the user's cache folder, or where that cannot be written a temporary one."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ttt-bench")
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _temporary_folder()
    return base if os.access(base, os.W_OK) else _temporary_folder()


def first_complaint(log: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["no message"]
    return next((line for line in lines if "error:" in line), lines[0])


def _fingerprint(source: Path, command: tuple[str, ...]) -> str:
    """Hash of everything the machine code depends on: sources with headers, command, compiler, processor."""
    parts = [source.read_bytes(), *(x.read_bytes() for x in _headers(source))]
    parts += ["\0".join(command).encode(), _version(command[0]).encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _headers(source: Path) -> Iterator[Path]:
    """Whatever the source might include: the headers here and beside it."""
    folders = {Path(__file__).parent, source.parent}
    yield from sorted(header for folder in folders for header in folder.glob("*.h"))


@functools.cache
def _version(command: str) -> str:
    return subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout


@functools.cache
def _processor() -> str:
    """Model and abilities, which is what -march=native asks for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))}))


@functools.cache
def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="ttt-bench-"))


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"no fused CPU operators, plain PyTorch instead (slower): {reason}", RuntimeWarning, stacklevel=4)
