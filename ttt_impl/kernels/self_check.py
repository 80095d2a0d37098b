"""Does a kernel compute on this very device what it is meant to compute? Asked once, before its first use.

A kernel proved in emulation can still meet a compiler or a device that treats it otherwise. So a small fixed problem
goes through the operators as a model's would, and through the plain dual form in float64 on the CPU, which depends on
no library of the device; the bounds are those of the emulation tests. CPU tensors run in the emulator, so that the
check itself can be tested without a GPU.
"""

import functools
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ttt_impl.kernels import fused_cuda, operators
from ttt_impl.kernels.bounds import BOUNDS, error
from ttt_impl.layout import continued, plain
from ttt_impl.learner import Inputs, Weights
from ttt_impl.ops import TTTResult, ttt_linear, ttt_mlp
from ttt_impl.state import FastWeights

TOKENS, BORDER, OPEN = 40, 21, 10
"""Two mini-batches and a half, read in two calls; decoding begins with 10 of its 16 rows taken and closes one."""
Errors = Iterator[tuple[str, float, float]]


@functools.cache
def complaint(kernel: str, width: int, device: torch.device) -> str | None:
    """Why `kernel` must not be used on `device` for heads of `width`, in one line; None: it is right."""
    what = f"self-check of {kernel}, head dimension {width}, on {device}"
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for name, found, allowed in errors(kernel, width, device):
                if not found <= allowed:
                    return f"{what}: {name} is off by {found:.1e}, allowed {allowed:.1e}"
    except Exception as reason:  # compilers, drivers and devices fail in their own ways
        return f"{what}: {str(reason).splitlines()[0] if str(reason) else type(reason).__name__}"
    return None


def errors(kernel: str, width: int, device: torch.device, length: int = TOKENS) -> Errors:
    """Names, errors and bounds of what `kernel` computes of a problem of `length` tokens, more than `BORDER`."""
    _, kind, task = kernel.split("_", 2)
    heads = operators.NARROW_HEADS + 1 if task == "fwd_wide" else 2
    check = {"fwd": _forward, "bwd": _backward, "decode": _decode}[task.partition("_")[0]]
    yield from check(kind, *problem(kind, heads, width, length, tiny=task != "bwd"), device)


def problem(kind: str, heads: int, width: int, length: int = TOKENS, tiny: bool = False) -> tuple[Inputs, Weights]:
    """One sequence on the CPU, bf16 tokens, all else float32.

    Gamma and beta are far from 1 and 0, or means over them would go unnoticed. If `tiny`, every second head begins
    with weights so small that LayerNorm's epsilon shows; the gradients of such a head are ill-conditioned.
    """
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float32, device="cpu")

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float32, device="cpu")

    q, k, v = (normal(1, heads, length, width).bfloat16() for _ in range(3))
    lr = uniform(1, heads, length) * {"linear": 1.0, "mlp": 0.1}[kind] / width
    tok = 1 / torch.arange(1, 17, dtype=torch.float32, device="cpu") + 0.02 * uniform(16)
    sizes = {"linear": (width, width), "mlp": (width, 4 * width, width)}[kind]
    scale = torch.tensor([0.02, 1e-4 if tiny else 0.02], device="cpu").repeat(-(-heads // 2))[:heads, None, None]
    weights: list[Tensor] = []
    for rows, columns in pairwise(sizes):
        weights += [scale * normal(heads, rows, columns), scale * normal(heads, 1, columns)]
    return Inputs(q, k, v, lr, tok, 1 + 0.4 * normal(heads, width), 0.2 * normal(heads, width)), tuple(weights)


def exact(kind: str, inputs: Inputs, weights: Weights, keep_state: bool = False) -> TTTResult:
    """What the plain dual form makes of it in float64."""
    entry = ttt_linear if kind == "linear" else ttt_mlp
    wide = Inputs(*(x.double() for x in inputs))
    return entry(wide, tuple(w.double() for w in weights), keep_state=keep_state, path="scan")


def _forward(kind: str, inputs: Inputs, weights: Weights, device: torch.device) -> Errors:
    """Two calls, the second beginning inside a mini-batch."""
    there, w0 = _to(inputs, device), _moved(weights, device)
    state: FastWeights | None = None
    outs = []
    for first, last in ((0, BORDER), (BORDER, inputs.q.shape[2])):
        part = there.each(lambda x, cut=slice(first, last): x[:, :, cut])  # type: ignore[misc]
        layout = continued(last - first, 16, [first], None, device)
        out, state = fused_cuda.run(kind, part, w0, layout, state, True, False)
        outs.append(out)
    yield from _outputs(kind, torch.cat(outs, 2), state, exact(kind, inputs, weights, True), inputs.q, weights)


def _outputs(
    kind: str, out: Tensor, after: FastWeights | None, right: TTTResult, q: Tensor, weights: Weights
) -> Errors:
    """Errors of output and state beside their bounds."""
    bounds, length = BOUNDS[kind], out.shape[2]
    assert after is not None
    assert right.state is not None
    expected, residual = right.output[:, :, -length:], q[:, :, -length:].double()
    yield "output", error(out.cpu(), expected), bounds.out
    yield "output without its residual", error(out.cpu().double() - residual, expected - residual), bounds.normalised
    for n, (mine, other) in enumerate(zip(after.weights, right.state.weights, strict=True)):
        start = torch.cat([weights[2 * n], weights[2 * n + 1]], 1).double()
        yield f"W{n + 1}", error(mine.cpu(), other), bounds.state
        yield f"what W{n + 1} learned", error(mine.cpu().double() - start, other - start), bounds.state
    for mine, other in zip(after.gradients, right.state.gradients, strict=True):
        yield "gradients of the open mini-batch", error(mine.cpu(), other), bounds.gradient


def _backward(kind: str, inputs: Inputs, weights: Weights, device: torch.device) -> Errors:
    g = torch.Generator().manual_seed(1)
    upstream = torch.randn(inputs.q.shape, generator=g, dtype=torch.float32, device="cpu").bfloat16()
    mine = [x.to(device, copy=True).requires_grad_() for x in (*inputs, *weights)]
    layout = plain(inputs.q.shape[2], 16, device)
    out, _ = fused_cuda.run(kind, Inputs(*mine[:7]), tuple(mine[7:]), layout, None, False, True)
    found = torch.autograd.grad(out, mine, upstream.to(device))
    wide = [x.double().requires_grad_() for x in (*inputs, *weights)]
    right = torch.autograd.grad(exact(kind, Inputs(*wide[:7]), tuple(wide[7:])).output, wide, upstream.double())
    names = (*Inputs._fields, *(f"weight {n}" for n in range(len(weights))))
    for name, a, b in zip(names, found, right, strict=True):
        yield f"gradient of {name}", error(a.cpu(), b), BOUNDS[kind].gradient


def _decode(kind: str, inputs: Inputs, weights: Weights, device: torch.device) -> Errors:
    """Single tokens from place 10 over the border of the mini-batch; the state before them is exact."""
    first = exact(kind, inputs.each(lambda x: x[:, :, :OPEN]), weights, keep_state=True).state
    assert first is not None
    state: FastWeights | None = first.each(lambda x: x.float().to(device))
    there, outs = _to(inputs, device), []
    for t in range(OPEN, OPEN + 16):
        token = there.each(lambda x, t=t: x[:, :, t : t + 1])  # type: ignore[misc]
        layout = continued(1, 16, [t], None, device)
        out, state = fused_cuda.run(kind, token, _moved(weights, device), layout, state, True, False)
        outs.append(out)
    read = inputs.each(lambda x: x[:, :, : OPEN + 16])
    yield from _outputs(kind, torch.cat(outs, 2), state, exact(kind, read, weights, True), read.q, weights)


def _to(inputs: Inputs, device: torch.device) -> Inputs:
    return Inputs(*(x.to(device) for x in inputs))


def _moved(weights: Weights, device: torch.device) -> Weights:
    return tuple(w.to(device) for w in weights)
