"""What stands between a config and its run on this machine, each in one line."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.config import RunConfig
from harness.plan.corpus import Corpus, cached
from harness.plan.hardware import GIB
from harness.run import check_checkpoints

GPU_PACKAGES = {"mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d", "cuda.core": "cuda-core"}
"""Without them families fall back on PyTorch, on a GPU."""


def missing(config: RunConfig, corpus: Corpus) -> Iterator[str]:
    """Whatever would stop the run, or make it much slower."""
    yield from corpus.problems
    yield from _device(config)
    yield from _models(config)
    if config.tasks and not _installed("lm_eval"):
        yield "tasks needs lm-eval: pip install 'ttt-bench[eval]'"


def _device(config: RunConfig) -> Iterator[str]:
    import torch

    from ttt_impl.cpu.build import OFF, BuildError, compiler

    there = torch.cuda.is_available()
    if config.runtime.device == "cuda" and not there:
        yield "runtime.device=cuda: torch finds no CUDA device here"
    if config.runtime.device == "cuda" or there:
        absent = [package for module, package in GPU_PACKAGES.items() if not _installed(module)]
        if absent:
            yield f"{', '.join(absent)} not installed, plain PyTorch on the GPU instead: pip install 'ttt-bench[cuda]'"
        return
    try:
        compiler()
    except BuildError as error:
        yield f"no fused operators, plain PyTorch instead (slower): {error}"
    if os.environ.get(OFF, "0") not in ("", "0"):
        yield f"no fused operators, plain PyTorch instead (slower): {OFF} is set"


def _models(config: RunConfig) -> Iterator[str]:
    try:
        check_checkpoints(config)
    except ValueError as error:
        yield str(error)
        return
    for name, family in config.model.items():
        place = family.checkpoint
        if not place or Path(place, "config.json").exists():
            continue
        if Path(place).is_file():
            if not _installed("gguf"):
                yield f"model.{name}.checkpoint={place} needs gguf: pip install 'ttt-bench[gguf]'"
        elif not cached(place, "config.json"):
            yield f"model.{name}.checkpoint={place} is not in the hub's cache here: it has to be downloaded"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def short_of(disk: int, memory: int, output: Path, device: str) -> Iterator[str]:
    """Disk and memory that the run needs and this machine has not."""
    place = next(parent for parent in (output.absolute(), *output.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if disk > free:
        yield f"disk: {disk / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free at {place}"
    have = memory_here(device)
    if memory > have:
        yield f"memory: {memory / GIB:.1f} GiB needed, this machine has {have / GIB:.1f} GiB"


def memory_here(device: str) -> int:
    """Bytes of this machine's memory, or its GPU's."""
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
