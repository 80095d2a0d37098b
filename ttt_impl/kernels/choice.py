"""Whether a call goes to the kernels: it has to fit them, they have to compile, and to pass their self-check.

What does not fit goes to the plain paths silently: that is a choice of the model. What should have worked and did not,
a compiler that is missing, a driver that refuses, a kernel that errs on this device, is said in one warning.
"""

import functools
import warnings

import torch

from ttt_impl import ops
from ttt_impl.kernels import fused_cuda, loader, self_check
from ttt_impl.layout import Layout
from ttt_impl.learner import Inputs, Learner
from ttt_impl.state import FastWeights


def why_not(
    kind: str, inputs: Inputs, learner: Learner, layout: Layout, state: FastWeights | None, keep_state: bool,
    record: int, differentiated: bool,
) -> str | None:  # fmt: skip
    """Why the kernels do not take the call, in one line; None: they do. Compiles and checks them at their first use."""
    reason = fused_cuda.misfit(kind, inputs, learner, layout, state, keep_state, record, differentiated)
    if reason is not None:
        return reason
    if not ops.on_gpu(inputs):
        return f"tokens are on {inputs.q.device.type}; valid choices: cuda"
    for name in fused_cuda.needed(kind, inputs.q, layout, state, differentiated):
        if (reason := failure(name, inputs.q.shape[3], inputs.q.device)) is not None:
            return reason
    return None


@torch.compiler.assume_constant_result
def failure(kernel: str, width: int, device: torch.device) -> str | None:
    """Why `kernel` cannot be used on `device`, warned of once; None: it can. For torch.compile a constant."""
    reason = _failure(kernel, width, device)
    if reason is not None:
        _warn_once(reason)
    return reason


@functools.cache
def _failure(kernel: str, width: int, device: torch.device) -> str | None:
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"{kernel} is compiled and checked at its first use; run a step before capturing one")
        if (missing := loader.missing(kernel, width, device)) is not None:
            return missing
    return self_check.complaint(kernel, width, device)


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"no fused CUDA kernels, plain PyTorch instead (slower): {reason}", RuntimeWarning, stacklevel=4)
