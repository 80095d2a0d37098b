"""Where and how models run: what a comparison must hold equal (config group `runtime`)."""

from __future__ import annotations

import os
from dataclasses import dataclass

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "bfloat16")
ENGINES = ("ddp", "fsdp")


@dataclass
class RuntimeConfig:
    """Device, number format and processes.

    `threads` CPU threads a model process; `workers` model processes that train, gate and score at the same time (None:
    as many as the cores allow on a CPU, one on a GPU). Timings never overlap, whatever `workers` is.

    The last four say how a model is trained, and change its results by rounding alone (`harness.train.engine`):
    `engine`, how the processes of torchrun share it; `micro_batch`, the sequences that a device reads at a time (None:
    all of its share of the recipe's batch); `activation_checkpointing`, whether activations are kept or computed twice;
    `compile`, whether torch.compile makes the code of its blocks.
    """

    device: str = "auto"
    dtype: str = "float32"
    threads: int = 1
    workers: int | None = None
    engine: str = "ddp"
    micro_batch: int | None = None
    activation_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"runtime.device is {self.device!r}: choose one of {', '.join(DEVICES)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"runtime.dtype is {self.dtype!r}: choose one of {', '.join(DTYPES)}")
        if self.engine not in ENGINES:
            raise ValueError(f"runtime.engine is {self.engine!r}: choose one of {', '.join(ENGINES)}")
        for name in ("threads", "workers", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"runtime.{name} is {value}: must be at least 1")

    def concurrency(self, device: str) -> int:
        """Model processes that may work at the same time on `device`."""
        if self.workers is not None:
            return self.workers
        return 1 if device == "cuda" else max(1, len(os.sched_getaffinity(0)) // self.threads)
