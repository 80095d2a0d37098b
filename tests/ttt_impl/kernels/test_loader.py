"""The loader against a driver of our own: what it asks of CUDA, what it launches, and what it says of a failure."""

import contextlib
import ctypes
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ttt_impl.kernels import emulation, loader
from ttt_impl.kernels.arguments import KERNELS, ForwardArgs, Problem
from ttt_impl.kernels.compiler import CompileError

DEVICE = torch.device("cuda", 1)


class Driver:
    """Records the calls; handles are numbers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            if name in ("cuModuleLoadData", "cuModuleGetFunction"):
                arguments[0]._obj.value = len(self.calls)
            return 0

        return call

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    driver = Driver()
    stream = types.SimpleNamespace(cuda_stream=77, synchronize=lambda: None)
    monkeypatch.setattr(loader, "_driver", lambda: driver)
    monkeypatch.setattr(loader, "cubin", lambda source, width, arch: f"{source} {width} {arch}".encode())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    forget()
    yield driver
    forget()


def forget() -> None:
    for cached in (loader._function, loader._module):
        cached.cache_clear()


def test_a_kernel_is_loaded_once_and_launched_on_the_current_stream(driver: Driver) -> None:
    assert loader.missing("ttt_linear_fwd", 64, DEVICE) is None
    arguments = ForwardArgs(p=Problem(length=5, heads=3, every=64), start=4096)
    for _ in range(2):
        loader.launch("ttt_linear_fwd", 64, 6, arguments, DEVICE)
    assert driver.named("cuModuleLoadData")[0][1] == b"ttt_linear_fwd.cu 64 sm_90"
    assert len(driver.named("cuModuleLoadData")) == len(driver.named("cuModuleGetFunction")) == 1
    _, *shape, shared, stream, parameters, extra = driver.named("cuLaunchKernel")[1]
    assert shape == [6, 1, 1, 128, 1, 1]
    assert shared == driver.named("cuFuncSetAttribute")[0][2] == KERNELS["ttt_linear_fwd"].shared(64)
    assert (stream.value, extra) == (77, None)
    launched = ctypes.cast(parameters[0], ctypes.POINTER(ForwardArgs)).contents
    assert (launched.p.length, launched.p.heads, launched.start, launched.out) == (5, 3, 4096, None)


def test_widths_and_sources_are_modules_of_their_own(driver: Driver) -> None:
    for name, width in (
        ("ttt_linear_fwd", 64),
        ("ttt_linear_fwd_wide", 64),
        ("ttt_linear_fwd", 96),
        ("ttt_linear_bwd", 64),
    ):
        assert loader.missing(name, width, DEVICE) is None
    assert len(driver.named("cuModuleLoadData")) == 3


def test_a_failure_is_told_with_its_reason(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def cubin(*_: object) -> bytes:
        raise CompileError("nvcc: not found")

    monkeypatch.setattr(loader, "cubin", cubin)
    assert loader.missing("ttt_linear_fwd", 64, DEVICE) == "nvcc: not found"
    with pytest.raises(RuntimeError, match="ttt_linear_fwd for head dimension 64 cannot be launched: nvcc: not found"):
        loader.launch("ttt_linear_fwd", 64, 1, ForwardArgs(), DEVICE)


def test_a_refused_size_falls_back(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """More shared memory than the device has."""
    monkeypatch.setitem(driver.__dict__, "cuFuncSetAttribute", lambda *_: 1)
    assert loader.missing("ttt_linear_bwd", 128, DEVICE) == "cuFuncSetAttribute: unknown error"


def test_old_devices_are_refused(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert loader.missing("ttt_linear_fwd", 64, DEVICE) == "compute capability 7.5 is below 8.0"


@pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
@pytest.mark.parametrize("name", KERNELS)
def test_sizes_are_those_of_the_sources_emulation(name: str) -> None:
    """Threads and bytes of shared memory, in Python and in C++."""
    kernel = KERNELS[name]
    for width in kernel.widths:
        library = emulation.library(kernel.source, width)
        sizes = [ctypes.c_int.in_dll(library, f"{name}_{what}").value for what in ("threads", "shared")]
        assert sizes == [kernel.threads(width), kernel.shared(width)]
