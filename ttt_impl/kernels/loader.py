"""Kernels on a GPU: compiled and loaded once for each device, launched on torch's current stream.

The driver is called through ctypes: four functions, the same for whatever compiled the machine code. Loading happens
in `missing`, ahead of the first launch: a CUDA graph that is being captured cannot load a module.
"""

import ctypes
import functools
import sys

import torch

from ttt_impl.kernels.arguments import KERNELS, Arguments
from ttt_impl.kernels.compiler import CompileError, cubin

OLDEST = (8, 0)
"""Compute capability with bf16 products and asynchronous copies."""
_MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""


class DriverError(RuntimeError):
    """What the CUDA driver refused, in one line."""


def missing(kernel: str, width: int, device: torch.device) -> str | None:
    """Why `kernel` cannot be launched, in one line; None: it can. Compiles and loads it the first time."""
    function = _function(kernel, width, device.index or 0)
    return function if isinstance(function, str) else None


def launch(kernel: str, width: int, ctas: int, arguments: Arguments, device: torch.device) -> None:
    """Start `ctas` CTAs on the current stream of `device`."""
    function = _function(kernel, width, device.index or 0)
    if isinstance(function, str):
        raise RuntimeError(f"kernel {kernel} for head dimension {width} cannot be launched: {function}")
    shape, stream = KERNELS[kernel], torch.cuda.current_stream(device).cuda_stream
    pointer = ctypes.cast(ctypes.pointer(arguments), ctypes.c_void_p)
    with torch.cuda.device(device):
        _call(
            "cuLaunchKernel", function, ctas, 1, 1, shape.threads(width), 1, 1, shape.shared(width),
            ctypes.c_void_p(stream), (ctypes.c_void_p * 1)(pointer), None,
        )  # fmt: skip


@functools.cache
def _function(kernel: str, width: int, device: int) -> ctypes.c_void_p | str:
    """Handle of the kernel in the primary context of `device`, or why there is none."""
    try:
        module = _module(KERNELS[kernel].source, width, device)
        function = ctypes.c_void_p()
        with torch.cuda.device(device):
            _call("cuModuleGetFunction", ctypes.byref(function), module, kernel.encode())
            _call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, KERNELS[kernel].shared(width))
    except (CompileError, DriverError) as error:
        return str(error)
    return function


@functools.cache
def _module(source: str, width: int, device: int) -> ctypes.c_void_p:
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        raise CompileError(f"compute capability {capability[0]}.{capability[1]} is below 8.0")
    code, module = cubin(source, width, f"sm_{capability[0]}{capability[1]}"), ctypes.c_void_p()
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # makes torch's context current
        _call("cuModuleLoadData", ctypes.byref(module), code)
    return module


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        raise DriverError(f"the CUDA driver cannot be loaded: {error}") from None


def _call(name: str, *arguments: object) -> None:
    status = getattr(_driver(), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise DriverError(f"{name}: {(text.value or b'unknown error').decode()}")
