"""From a .cu file to machine code (a cubin) for one GPU architecture, without a build step at install.

Three ways, the first that works: `cuda.core` (NVRTC with a cache on disk shared by processes), NVRTC by itself (any
CUDA build of torch brings it), and nvcc. None needs a GPU, so a machine without one can check that all kernels compile.
The includes are written into the source beforehand: one string then says everything the cache has to know. A line
`// ptxas: -O1` in a source is an option for the assembler.
"""

import ctypes
import ctypes.util
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)
PTXAS = re.compile(r"^// ptxas: (\S+)$", re.MULTILINE)


class CompileError(Exception):
    """Why there is no machine code, in one line."""


def cubin(source: str, width: int, arch: str) -> bytes:
    """Machine code of `source` for head dimension `width` and an architecture such as 'sm_90'."""
    text, reasons = flattened(source), []
    for way in (with_cuda_core, with_nvrtc, with_nvcc):
        try:
            return way(text, width, arch)
        except CompileError as error:
            reasons.append(str(error))
    raise CompileError("; ".join(reasons))


def flattened(source: str) -> str:
    """The source with its includes in place, each once; the emulator's stays, behind its #ifdef."""
    seen: set[str] = set()

    def include(match: re.Match[str]) -> str:
        name = match[1]
        if name == "emulator.h" or name in seen:
            return match[0] * (name not in seen)
        seen.add(name)
        line = match.string[: match.start()].count("\n") + 2
        return f'#line 1 "{name}"\n{expand(name)}\n#line {line}'

    def expand(name: str) -> str:
        text = (SOURCES / name).read_text().replace("#pragma once\n", "\n")
        return INCLUDE.sub(include, text)

    return expand(source)


def with_cuda_core(text: str, width: int, arch: str) -> bytes:
    """NVRTC through `cuda.core`; a second process finds the result in the user's cache folder."""
    try:
        from cuda.core import Program, ProgramOptions
        from cuda.core.utils import FileStreamProgramCache
    except ImportError as error:
        raise CompileError(f"cuda-core: {error}") from None
    try:
        options = ProgramOptions(
            arch=arch, std="c++17", define_macro=f"HEAD_DIM={width}", ptxas_options=PTXAS.findall(text)
        )  # fmt: skip
        with FileStreamProgramCache() as cache:
            return bytes(Program(text, "c++", options).compile("cubin", cache=cache).code)
    except Exception as error:  # NVRTC's and the cache's own errors share no base
        raise CompileError(f"cuda-core: {_first_complaint(str(error))}") from None


def with_nvrtc(text: str, width: int, arch: str) -> bytes:
    """NVRTC by itself, through ctypes."""
    nvrtc = _nvrtc()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    try:
        assembler = [f"--ptxas-options={option}" for option in PTXAS.findall(text)]
        options = [o.encode() for o in (f"-arch={arch}", "-std=c++17", f"-DHEAD_DIM={width}", *assembler)]
        if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise CompileError(f"NVRTC: {_first_complaint(log.value.decode())}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def with_nvcc(text: str, width: int, arch: str) -> bytes:
    """The compiler of the CUDA toolkit, from PATH or CUDA_HOME."""
    return nvcc(text, width, arch)[0]


def nvcc(text: str, width: int, arch: str) -> tuple[bytes, str]:
    """Machine code, and what the assembler reports: registers and spills."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    compiler = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if compiler is None:
        raise CompileError("nvcc: not found on PATH or in CUDA_HOME")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
        source.write_text(text)
        assembler = [f"-Xptxas={option}" for option in ("-v", *PTXAS.findall(text))]
        command = [compiler, "-cubin", f"-arch={arch}", "-std=c++17", f"-DHEAD_DIM={width}", *assembler]
        done = subprocess.run([*command, "-o", str(target), str(source)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(f"nvcc: {_first_complaint(done.stderr)}")
        return target.read_bytes(), done.stderr


def _nvrtc() -> ctypes.CDLL:
    """The library from NVIDIA's Python packages, with its builtins, or from the system."""
    for folder in _nvidia_folders():
        for library in sorted(folder.glob("libnvrtc.so.*")):
            for builtins in folder.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(library))
    found = ctypes.util.find_library("nvrtc")
    if found is None:
        raise CompileError("NVRTC: library not found")
    return ctypes.CDLL(found)


def _nvidia_folders() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    return [lib for root in roots for lib in sorted(Path(root).glob("*/lib"), reverse=True)]


def _first_complaint(log: str) -> str:
    """The line that says what is wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["no message"]
    return next((line for line in lines if " error:" in line), lines[0])
