"""Peak memory of one call, above what the process held before it.

On a GPU the allocator knows. On a CPU the kernel keeps the high-water mark of the resident set (`VmHWM` in
/proc/self/status), which a process may reset (writing 5 to /proc/self/clear_refs); freed heap is handed back first, or
an earlier call's leavings would hide what this one needs. Meanwhile whatever is large is mapped by itself: a heap that
goes to pieces grows by up to a half more than its tensors. Such mapping is slow, so it ends with the call, and nothing
is timed under it. Where /proc is missing the answer is None, not a guess.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of mallopt(3)."""
LARGE, GROWN = 64 << 10, 32 << 20
"""From which size on memory is mapped by itself: while a peak is measured; and what glibc grows to by itself."""


def peak_bytes(work: Callable[[], object], device: str) -> int | None:
    """Bytes by which memory rose at its highest while `work` ran, or None where that cannot be known."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _CLEAR_REFS.write_text("5")
        resting = _resident("VmRSS")
    except OSError:
        return None
    with _mapped():
        work()
    return max(0, _resident("VmHWM") - resting)


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    """Within, what is large is mapped by itself; afterwards malloc goes on as after many large allocations."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, GROWN)
        libc.mallopt(_TRIM_THRESHOLD, 2 * GROWN)


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")
