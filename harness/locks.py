"""Whose turn it is among jobs that share a folder, as seeds of a parallel sweep: locks that end with their holder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def hold(path: Path, shared: bool = False, otherwise: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path`: alone, or along with others that share it.

    If that is not possible at once, `otherwise` is called first, which may raise; then this waits.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            otherwise()
            fcntl.flock(lock, kind)
        yield
