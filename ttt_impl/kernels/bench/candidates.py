"""Who takes part in a comparison: the kernels, the plain dual form, and other layers over the same tokens.

Everyone reads as many tokens of as many channels. What is not TTT computes something else; it says what a token costs
elsewhere. Who cannot take part, for want of a package, of a backward pass or of a step, says why in one line.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ttt_impl.kernels.bench import official, others
from ttt_impl.kernels.bench.work import Work
from ttt_impl.layout import continued
from ttt_impl.learner import Inputs, Weights
from ttt_impl.ops import ttt_linear, ttt_mlp

Call = Callable[[], object]
UNROLLED = 32
"""Mini-batches that torch.compile is given; it unrolls the loop, and compiles for minutes beyond."""
OPEN = 7
"""Rows of the open mini-batch when a token is decoded: half of them, on the average."""


class Skipped(Exception):
    """Why a candidate does not take part."""


def candidates(work: Work, device: torch.device, checkout: Path | None) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls by name, and the reasons of those who are missing."""
    makers: dict[str, Callable[[], Call]] = {
        "fused-cuda": lambda: ours(work, device, "fused-cuda"),
        "fused-cuda in a graph": lambda: in_a_graph(work, ours(work, device, "fused-cuda")),
        "dual form": lambda: ours(work, device, "step" if work.task == "decode" else "scan"),
        "dual form, torch.compile": lambda: compiled(work, device),
        "attention (SDPA)": lambda: attention(work, device),
        "Mamba (mamba-ssm)": lambda: others.mamba(work, device),
        "fla TTT-Linear": lambda: others.fla(work, device),
    }
    if checkout is not None:
        makers["official kernels"] = lambda: official.prefill(work, device, checkout)
    calls: dict[str, Call] = {}
    missing: dict[str, str] = {}
    for name, make in makers.items():
        try:
            calls[name] = make()
        except (Skipped, ImportError, ValueError, RuntimeError) as reason:
            missing[name] = str(reason).strip().splitlines()[0]
    return calls, missing


def inputs(work: Work, device: torch.device) -> tuple[Inputs, Weights]:
    """Random bf16 tokens, as a model would bring them: [B, L, H, f] in memory."""
    g = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device)

    length = 1 if work.task == "decode" else work.length
    q, k, v = (normal(work.batch, length, work.heads, work.width).bfloat16().transpose(1, 2) for _ in range(3))
    lr = torch.rand(work.batch, work.heads, length, generator=g, device=device) * 0.1 / work.width
    tok = 1 / torch.arange(1, 17, device=device)
    affine = torch.ones(work.heads, work.width, device=device), torch.zeros(work.heads, work.width, device=device)
    weights: list[Tensor] = []
    f, h = work.width, 4 * work.width
    for rows, columns in [(f, f)] if work.learner == "linear" else [(f, h), (h, f)]:
        weights += [0.02 * normal(work.heads, rows, columns), 0.02 * normal(work.heads, 1, columns)]
    return Inputs(q, k, v, lr, tok, *affine), tuple(weights)


def ours(work: Work, device: torch.device, path: str) -> Call:
    """A path of `ops.py`; asked once beforehand, so that it compiles, checks itself, or says why it cannot."""
    entry = ttt_linear if work.learner == "linear" else ttt_mlp
    given, weights = inputs(work, device)
    if work.task == "train":
        return trained(lambda x, w: entry(x, w, path=path).output, given, weights)
    if work.task == "forward":
        return without_gradients(lambda: entry(given, weights, path=path).output)
    token, before = given, inputs(work._replace(task="forward", length=OPEN), device)[0]
    with torch.no_grad():
        state = entry(before, weights, path="scan", keep_state=True).state
    assert state is not None
    layout = continued(1, 16, [OPEN] * work.batch, None, device)
    return without_gradients(
        lambda: entry(token, weights, path=path, state=state, layout=layout, keep_state=True).output
    )


def trained(forward: Callable[[Inputs, Weights], Tensor], given: Inputs, weights: Weights) -> Call:
    """Forward and backward to every input."""
    leaves = [x.detach().requires_grad_() for x in (*given, *weights)]
    upstream = torch.ones_like(given.q)
    call = trained_call(lambda: forward(Inputs(*leaves[:7]), tuple(leaves[7:])), leaves, upstream)
    call()
    return call


def trained_call(forward: Callable[[], Tensor], leaves: list[Tensor], upstream: Tensor) -> Call:
    """The gradients of `leaves`, given that of the output."""
    return lambda: torch.autograd.grad(forward(), leaves, upstream)


def without_gradients(forward: Call) -> Call:
    """The call as inference makes it."""

    def call() -> object:
        with torch.no_grad():
            return forward()

    call()
    return call


def in_a_graph(work: Work, call: Call) -> Call:
    """The same launches without Python between them."""
    if work.task == "train":
        raise Skipped("forward and backward are not captured")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def compiled(work: Work, device: torch.device) -> Call:
    """The plain loop, which torch.compile can read, unrolled."""
    if work.task == "decode":
        raise Skipped("a token is one step of the loop")
    if work.length > 16 * UNROLLED:
        raise Skipped(f"a loop of {work.length // 16} mini-batches takes minutes to unroll; at most {UNROLLED}")
    entry = ttt_linear if work.learner == "linear" else ttt_mlp
    given, weights = inputs(work, device)
    forward = torch.compile(lambda x, w: entry(x, w, path="autograd", group=work.length).output)
    if work.task == "train":
        return trained(forward, given, weights)
    return without_gradients(lambda: forward(given, weights))


def attention(work: Work, device: torch.device) -> Call:
    """Causal attention over the same heads; decoding looks back on `length` tokens."""
    q = inputs(work, device)[0].q.contiguous()
    k, v = (inputs(work._replace(task="forward"), device)[0].q.contiguous() for _ in range(2))
    causal = work.task != "decode"
    if work.task != "train":
        return without_gradients(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal))
    q, k, v = leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    return trained_call(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), leaves, torch.ones_like(q))
