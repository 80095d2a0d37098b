"""`ttt_linear` and `ttt_mlp`: one entry a learner, which picks how to compute and says what it picked.

    'scan'      the hand-differentiated scan over mini-batches (`scan_linear.py`, `scan_mlp.py`); differentiable once
    'autograd'  the same dual form as a plain loop (`scan_autograd.py`); differentiable any number of times
    'step'      a few tokens inside the open mini-batch of a cache (`step.py`); not differentiable
    'fused-cpu'  the operators of `cpu/`, float32 on a CPU with a C++ compiler; differentiable once
    'fused-cuda'  the kernels of `kernels/`, bfloat16 on a CUDA device; differentiable once

'auto' takes 'fused-cuda' where the call fits the kernels and they have passed a self-check on the device at hand,
'fused-cpu' where that applies, otherwise 'step' where it applies and 'scan' where it does not. Inputs in half
precision are computed, and their fast weights kept, in float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ttt_impl.checks import check_choice
from ttt_impl.cpu import fused_cpu
from ttt_impl.layout import Layout, plain
from ttt_impl.learner import PUBLISHED, Inputs, Learner, Weights
from ttt_impl.scan_autograd import scan_linear, scan_mlp
from ttt_impl.scan_linear import scan_linear_fast
from ttt_impl.scan_mlp import scan_mlp_fast
from ttt_impl.state import FastWeights, fold
from ttt_impl.step import step_linear, step_mlp
from ttt_impl.walk import Walk, is_differentiated

PATHS = ("auto", "scan", "autograd", "step", "fused-cpu", "fused-cuda")
SCANS = {
    ("linear", "scan"): scan_linear_fast,
    ("linear", "autograd"): scan_linear,
    ("mlp", "scan"): scan_mlp_fast,
    ("mlp", "autograd"): scan_mlp,
}
KEPT = {"scan": 20, "autograd": 110}
"""Numbers a path keeps for its backward pass, for each token and feature of a head; measured, and rounded up."""


class TTTResult(NamedTuple):
    """What an entry returns."""

    output: Tensor
    """[B, H, L, f]."""
    state: FastWeights | None
    """What is remembered, if it was asked for."""
    path: str
    """The path taken."""
    closed: tuple[FastWeights, ...] = ()
    """The last mini-batches that filled up, each as it was when full but not yet folded; see `record`."""
    why_not: str = ""
    """Why not the kernels, where tokens on a CUDA device went past them unasked."""


def ttt_linear(
    inputs: Inputs, weights: Weights, *, learner: Learner = PUBLISHED, layout: Layout | None = None,
    state: FastWeights | None = None, keep_state: bool = False, path: str = "auto",
    group: int = 0, record: int = 0,
) -> TTTResult:  # fmt: skip
    """TTT-Linear over `inputs` from W0 = `weights` (W1 [H, f, f], b1 [H, 1, f]), or on from `state`.

    `group` is the number of mini-batches recomputed together in the backward pass (0: chosen by size), `record` the
    number of mini-batches to return as they were before closing, which lets a cache be rewound.
    """
    return _run("linear", inputs, weights, learner, layout, state, keep_state, path, group, record)


def ttt_mlp(
    inputs: Inputs, weights: Weights, *, learner: Learner = PUBLISHED, layout: Layout | None = None,
    state: FastWeights | None = None, keep_state: bool = False, path: str = "auto",
    group: int = 0, record: int = 0,
) -> TTTResult:  # fmt: skip
    """TTT-MLP over `inputs` from W0 = `weights` (W1 [H, f, 4f], b1 [H, 1, 4f], W2 [H, 4f, f], b2 [H, 1, f])."""
    return _run("mlp", inputs, weights, learner, layout, state, keep_state, path, group, record)


def _run(
    kind: str, inputs: Inputs, weights: Weights, learner: Learner, layout: Layout | None,
    state: FastWeights | None, keep_state: bool, path: str, group: int, record: int,
) -> TTTResult:  # fmt: skip
    check_choice("path", path, PATHS)
    layout = layout or plain(inputs.q.shape[2], len(inputs.tok), inputs.q.device)
    why_not = ""
    if path == "fused-cuda" or (path == "auto" and on_gpu(inputs)):
        from ttt_impl.kernels import choice, fused_cuda

        differentiated = is_differentiated(inputs, weights)
        refusal = choice.why_not(kind, inputs, learner, layout, state, keep_state, record, differentiated)
        if refusal is None:
            output, end = fused_cuda.run(kind, inputs, weights, layout, state, keep_state, differentiated)
            return TTTResult(output, end, fused_cuda.PATH)
        if path == "fused-cuda":
            raise ValueError(f"path='fused-cuda' cannot be taken: {refusal}; or path='auto', 'scan', 'autograd'")
        why_not = refusal
    dtype = inputs.q.dtype
    work = torch.promote_types(dtype, torch.float32)
    with torch.autocast(inputs.q.device.type, enabled=False):
        inputs, weights = Inputs(*(x.to(work) for x in inputs)), tuple(w.to(work) for w in weights)
        differentiated = is_differentiated(inputs, weights)
        if path in ("auto", fused_cpu.PATH) and fused_cpu.supports(
            kind, inputs, learner, layout, state, keep_state, record, differentiated
        ):
            output, after, closed = fused_cpu.run(kind, inputs, weights, layout, state, keep_state, differentiated)
            return TTTResult(output.to(dtype), after, fused_cpu.PATH, closed if record else ())
        path = _pick(path, layout, state, differentiated)
        if path == "step" and state is not None:
            step = step_linear if kind == "linear" else step_mlp
            output, after = step(inputs, learner, layout, state)
            full = (state,) if record and after is not state else ()
            return TTTResult(output.to(dtype), after, path, full, why_not)
        fresh = fold(weights, len(inputs.q), learner.bias)
        walk = Walk(SCANS[kind, path], learner, layout, fresh, group, KEPT[path], record)
        output, end, closed = walk.run(inputs, state, keep_state)
    return TTTResult(output.to(dtype), end, path, closed, why_not)


def on_gpu(inputs: Inputs) -> bool:
    """Whether the tokens are where the kernels run; elsewhere nothing of them is imported."""
    return inputs.q.device.type == "cuda"


def _pick(path: str, layout: Layout, state: FastWeights | None, differentiated: bool) -> str:
    """The path for these inputs; 'step' is refused where it would be wrong, and so is what did not fit 'fused-cpu'."""
    if path == fused_cpu.PATH:
        raise ValueError(
            "path='fused-cpu' needs the published learner in float32 on a CPU with a C++ compiler, mini-batches of at "
            f"most {fused_cpu.LARGEST}, no gradients through an open mini-batch and no state of packed documents; "
            "valid choices here: 'auto', 'scan', 'autograd'"
        )
    fits = state is not None and layout.fits_open and not differentiated
    if path == "step" and not fits:
        raise ValueError(
            "path='step' needs a state, no gradients, and a chunk that stays inside the open mini-batch; "
            "valid choices here: 'auto', 'scan', 'autograd'"
        )
    if path == "auto":
        return "step" if fits else "scan"
    return path
