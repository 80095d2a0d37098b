"""What holds for every child process of this project."""

from __future__ import annotations

import multiprocessing
import os
import threading


def die_with_parent() -> None:
    """Let this child process end when its parent does, also after `kill -9`."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
