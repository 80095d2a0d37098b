"""Kernels as machine code, without a GPU: what nvcc makes of them, and the three ways to compile."""

import re
from collections import Counter
from pathlib import Path

import pytest

from ttt_impl.kernels import compile_report, compiler
from ttt_impl.kernels.arguments import KERNELS
from ttt_impl.kernels.compile_report import Row, compiled, sources, table
from ttt_impl.kernels.compiler import CompileError, cubin, flattened, nvcc, with_cuda_core, with_nvrtc
from ttt_impl.kernels.machine_code import disassembler, main_loops

CASES = [
    ("ttt_linear_fwd.cu", 64, "sm_80"), ("ttt_linear_fwd.cu", 64, "sm_90a"), ("ttt_linear_fwd.cu", 64, "sm_120"),
    ("ttt_linear_bwd.cu", 64, "sm_90a"), ("ttt_linear_decode.cu", 64, "sm_80"), ("ttt_mlp_fwd.cu", 64, "sm_80"),
    ("ttt_mlp_fwd.cu", 64, "sm_90a"), ("ttt_mlp_decode.cu", 64, "sm_80"),
]  # fmt: skip
"""The others by `python -m ttt_impl.kernels.compile_report`."""


@pytest.mark.parametrize(("source", "width", "arch"), CASES)
def test_kernels_stay_within_their_gates(source: str, width: int, arch: str) -> None:
    if source not in sources():
        pytest.skip(f"{source} has yet to be written")
    try:
        rows = compiled(source, width, arch)
    except CompileError as error:
        if "not found" in str(error):
            pytest.skip(str(error))
        raise
    assert {row.kernel for row in rows} == {name for name, k in KERNELS.items() if k.source == source}
    assert [line for row in rows for line in row.complaints()] == []


def test_what_is_beyond_a_gate_is_named() -> None:
    row = Row("ttt_linear_fwd", 64, "sm_80", 168, 0, Counter(HMMA=35, BAR=1, FFMA=80))
    assert row.complaints() == []
    assert Row("something_new", 64, "sm_80", 255, 900, None).complaints() == []
    where = "ttt_linear_fwd, head dimension 64, sm_80:"
    assert row._replace(registers=169).complaints() == [f"{where} 169 registers, allowed 168"]
    assert row._replace(spilled=4, loop=None).complaints() == [f"{where} 4 bytes spilled, allowed 0"]
    worse = row._replace(loop=Counter(HMMA=0, BAR=2, LDL=1))
    assert worse.complaints() == [
        f"{where} 1 words of the stack in the main loop, allowed 0",
        f"{where} 2 barriers in the main loop, allowed 1",
        f"{where} 1 main loops without a product, allowed 0",
    ]
    assert Row("ttt_mlp_fwd", 64, "sm_90a", 255, 164, None).complaints()[0].endswith("164 bytes spilled, allowed 160")


LISTING = """
\t.section\t.text.one,"ax",@progbits
.L_x_0:
        /*0000*/              @!P0 LDG.E R2, desc[UR6][R2.64] ;
.L_x_1:
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0030*/               @P1 BRA `(.L_x_1) ;
        /*0040*/               @P2 BRA `(.L_x_0) ;
.L_x_2:
        /*0050*/                   BRA `(.L_x_2);
\t.section\t.text.two,"ax",@progbits
        /*0000*/                   STL [R1], R2 ;
        /*0010*/                   EXIT ;
"""


def test_the_main_loop_is_the_one_with_the_products() -> None:
    assert main_loops(LISTING) == {"one": Counter(HMMA=1, BAR=1, BRA=1), "two": Counter(STL=1, EXIT=1)}


def test_the_disassembler_is_found_and_its_absence_bearable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "nvdisasm"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert disassembler() == str(tool)
    rows = [Row("ttt_linear_bwd", 64, arch, 255, spilled, None) for arch, spilled in (("sm_80", 28), ("sm_90a", 0))]
    assert table(rows).splitlines()[-1] == "| `ttt_linear_bwd` | 64 | 255 | 28 / 0 | nvdisasm not found |"


def test_the_report_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert compile_report.main(["sm_90a"]) == 2


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
