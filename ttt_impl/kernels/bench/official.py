"""The prefill kernels of the official inference code, from a user's own checkout of ttt-lm-kernels, built there.

They read fp16 tokens cut into mini-batches and the whole matrix of rates, biases repeated for every token of a
mini-batch, and two matrices that pick its last token; weights are changed in place.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttt_impl.kernels.bench.work import Work

SIZE = 16
"""Tokens of a mini-batch."""


def prefill(work: Work, device: torch.device, checkout: Path) -> Callable[[], object]:
    """One call of the checkout's kernel; ImportError says what is missing."""
    if work.task != "forward" or work.width != 64 or work.length % SIZE:
        raise ImportError("the official kernels read whole mini-batches of heads of 64, forward only")
    name = f"tk_ttt_{work.learner}_prefill"
    kernel: Callable[..., None] = getattr(_module(name, checkout), f"ttt_{work.learner}_prefill_fp16")
    f, h, heads = work.width, 4 * work.width, (work.batch, work.heads)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.float16)

    tokens = [normal(*heads, work.length // SIZE, SIZE, f) for _ in range(3)]
    eta = normal(*heads, work.length // SIZE, SIZE, SIZE).abs() * 1e-3
    affine = [normal(work.heads, SIZE, f), normal(work.heads, SIZE, f)]
    last = [torch.zeros(SIZE, n, device=device, dtype=torch.float16) for n in (SIZE, f, h)]
    last[0][:, -1] = last[1][-1] = last[2][-1] = 1
    if work.learner == "linear":
        weights = [0.02 * normal(*heads, f, f), 0.02 * normal(*heads, SIZE, f)]
        last = last[:2]
    else:
        weights = [0.02 * normal(*heads, f, h), 0.02 * normal(*heads, h, f)]
        weights += [0.02 * normal(*heads, SIZE, h), 0.02 * normal(*heads, SIZE, f)]
    out = torch.empty_like(tokens[0])
    return lambda: kernel(*weights, *affine, *last, *tokens, eta, out)


def _module(name: str, checkout: Path) -> Any:
    """The extension as built inside the checkout, or as installed."""
    for file in sorted(checkout.rglob(f"{name}*.so")):
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f"{checkout} holds no built {name}*.so; build it there with its setup.py") from None
