"""Kernels as machine code, without a GPU: registers and spills by nvcc, and the three ways to compile."""

import re

import pytest

from ttt_impl.kernels import compiler
from ttt_impl.kernels.arguments import KERNELS
from ttt_impl.kernels.compiler import CompileError, cubin, flattened, nvcc, with_cuda_core, with_nvrtc

REGISTERS = {
    ("ttt_linear_fwd", 64): 168, ("ttt_linear_fwd", 96): 168, ("ttt_linear_fwd", 128): 255,
    ("ttt_linear_fwd_wide", 64): 255, ("ttt_linear_bwd", 64): 255, ("ttt_linear_decode", 64): 128,
}  # fmt: skip
"""What lets the wished-for number of CTAs live on a multiprocessor."""
SPILLS = {"ttt_linear_bwd": 64}
"""Bytes stored on the stack; elsewhere none."""
ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120")
CASES = [("ttt_linear_fwd.cu", 64, arch) for arch in ARCHITECTURES]
CASES += [("ttt_linear_fwd.cu", width, "sm_90a") for width in (96, 128)]
CASES += [(f"ttt_linear_{name}.cu", 64, arch) for name in ("bwd", "decode") for arch in ("sm_80", "sm_90a")]


def report(log: str) -> dict[str, tuple[int, int]]:
    """Registers and bytes spilled of every kernel in nvcc's report."""
    names = re.findall(r"entry function '(\w+)'", log)
    registers = map(int, re.findall(r"Used (\d+) registers", log))
    spills = map(int, re.findall(r"(\d+) bytes spill stores", log))
    return {name: numbers for name, *numbers in zip(names, registers, spills, strict=True)}  # type: ignore[misc]


@pytest.mark.parametrize(("source", "width", "arch"), CASES)
def test_kernels_fit_their_registers(source: str, width: int, arch: str) -> None:
    try:
        code, log = nvcc(flattened(source), width, arch)
    except CompileError as error:
        if "not found" in str(error):
            pytest.skip(str(error))
        raise
    assert code.startswith(b"\x7fELF")
    found = report(log)
    assert set(found) == {name for name, k in KERNELS.items() if k.source == source and width in k.widths}
    for name, (registers, spilled) in found.items():
        assert registers <= REGISTERS[name, width]
        assert spilled <= SPILLS.get(name, 0)


@pytest.mark.parametrize("way", [with_cuda_core, with_nvrtc])
def test_nvrtc_compiles_without_a_gpu(way, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        code = way(flattened("ttt_linear_decode.cu"), 64, "sm_90")
    except CompileError as error:
        if " error:" in str(error):
            raise
        pytest.skip(str(error))
    assert b"ttt_linear_decode" in code


def test_includes_are_written_into_the_source() -> None:
    text = flattened("ttt_linear_fwd.cu")
    assert text.count("struct Lane {") == text.count("DEVICE void mma16816") == 1
    assert re.findall(r'^#include "(.*)"', text, re.MULTILINE) == ["emulator.h"]


def test_the_first_way_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str):  # type: ignore[no-untyped-def]
        def way(*_: object) -> bytes:
            raise CompileError(f"{name}: missing")

        return way

    monkeypatch.setattr(compiler, "with_cuda_core", fails("cuda-core"))
    monkeypatch.setattr(compiler, "with_nvrtc", lambda text, width, arch: f"{width} {arch}".encode())
    assert cubin("ttt_linear_fwd.cu", 64, "sm_90") == b"64 sm_90"
    monkeypatch.setattr(compiler, "with_nvrtc", fails("NVRTC"))
    monkeypatch.setattr(compiler, "with_nvcc", fails("nvcc"))
    with pytest.raises(CompileError, match="cuda-core: missing; NVRTC: missing; nvcc: missing"):
        cubin("ttt_linear_fwd.cu", 64, "sm_90")


def test_a_fault_in_the_source_is_named() -> None:
    with pytest.raises(CompileError, match=r"error: identifier|not found"):
        nvcc("int x = nonsense;", 64, "sm_90")
