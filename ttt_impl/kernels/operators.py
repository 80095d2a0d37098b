"""TTT-Linear's kernels as operators of torch: shapes known without running them, gradients, the choice of the kernel.

    ttt::linear_forward     functional; differentiable when told to save what the backward pass reads
    ttt::linear_backward    functional
    ttt::linear_decode      changes its state in place

Tokens come as [B, L, H, f], the order in which the kernels read memory. The S segments (see `ttt_linear.cuh`) are the
B rows unless a table of them is given; N = S * H. CPU tensors go to the emulator.
"""

from typing import Any

import torch
from torch import Tensor

from ttt_impl.kernels import emulation, loader
from ttt_impl.kernels.arguments import (
    KERNELS,
    TOKENS,
    Arguments,
    BackwardArgs,
    DecodeArgs,
    ForwardArgs,
    check,
    problem,
)

EVERY = 64
"""Mini-batches between two checkpoints of W: undoing 64 updates costs no visible accuracy."""
NARROW_HEADS = 264
"""Up to this many heads, two for each of 132 multiprocessors, the kernel with the shortest chain is the fastest."""
Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Eight = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("ttt::linear_forward", mutates_args=())
def linear_forward(
    q: Tensor, k: Tensor, v: Tensor, lr: Tensor, tok: Tensor, gamma: Tensor, beta: Tensor, start: Tensor,
    keys: Tensor | None, ghat: Tensor | None, segments: Tensor | None, mini_batches: int, save: bool,
) -> Six:  # fmt: skip
    """TTT-Linear over q, k, v [B, L, H, f] from `start` [N, f + 1, f], lr [B, H, L].

    Returns out [B, L, H, f]; W after the last full mini-batch; keys [N, 16, f + 1] and Ghat [N, 16, f] of the
    mini-batch left open; and what the backward pass reads, empty unless `save`. `keys` and `ghat` are the rows of a
    mini-batch already open, `mini_batches` is the number of all segments together (0: plain rows).
    """
    check(q=q, k=k, v=v, lr=lr, tok=tok, gamma=gamma, beta=beta, start=start)
    results = _forward_results(q, start, segments, mini_batches, save)
    out, end, end_keys, end_ghat, updates, checkpoints = results
    shared = problem(q, k, v, lr, tok, gamma, beta, segments, EVERY)
    arguments = ForwardArgs(p=shared)
    arguments.set(start=start, keys=keys, ghat=ghat, out=out, end=end, end_keys=end_keys, end_ghat=end_ghat)
    arguments.set(updates=updates if save else None, checkpoints=checkpoints if save else None)
    wide = q.shape[3] in KERNELS["ttt_linear_fwd_wide"].widths and len(start) > NARROW_HEADS
    launch("ttt_linear_fwd_wide" if wide else "ttt_linear_fwd", q, len(start), arguments)
    return results


@linear_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, lr: Tensor, tok: Tensor, gamma: Tensor, beta: Tensor, start: Tensor,
    keys: Tensor | None, ghat: Tensor | None, segments: Tensor | None, mini_batches: int, save: bool,
) -> Six:  # fmt: skip
    return _forward_results(q, start, segments, mini_batches, save)


def _forward_results(q: Tensor, start: Tensor, segments: Tensor | None, mini_batches: int, save: bool) -> Six:
    """Room for the results; where segments leave tokens out, the output is zero there."""
    batch, length, heads, width = q.shape
    total = mini_batches or batch * -(-length // TOKENS)
    updates, checkpoints = (total, (total - 1) // EVERY) if save else (0, 0)
    return (
        room(q, segments),
        start.new_empty(start.shape),
        start.new_zeros(len(start), TOKENS, width + 1),
        start.new_zeros(len(start), TOKENS, width),
        torch.empty(updates, heads, 8 * width, dtype=torch.int32, device=q.device),
        start.new_zeros(checkpoints, heads, width + 1, width),
    )


@torch.library.custom_op("ttt::linear_backward", mutates_args=())
def linear_backward(
    d_out: Tensor, d_end: Tensor | None, q: Tensor, k: Tensor, v: Tensor, lr: Tensor, tok: Tensor, gamma: Tensor,
    beta: Tensor, end: Tensor, updates: Tensor, checkpoints: Tensor, segments: Tensor | None,
) -> Eight:  # fmt: skip
    """Gradients of q, k, v, lr, tok, gamma, beta and `start`, given those of the output and (if any) of `end`."""
    check(d_out=d_out, q=q, k=k, v=v, lr=lr, tok=tok, gamma=gamma, beta=beta, end=end)
    heads, width = q.shape[2:]
    dq, dk, dv = (room(q, segments) for _ in range(3))
    dlr = lr.new_empty(lr.shape) if segments is None else lr.new_zeros(lr.shape)
    d_start, dtok = end.new_empty(end.shape), end.new_empty(len(end), TOKENS)
    dgamma, dbeta = (end.new_empty(len(end) // heads, heads, width) for _ in range(2))
    shared = problem(q, k, v, lr, tok, gamma, beta, segments, EVERY)
    arguments = BackwardArgs(p=shared)
    arguments.set(d_out=d_out, end=end, updates=updates, checkpoints=checkpoints, d_end=d_end, dq=dq, dk=dk, dv=dv)
    arguments.set(dlr=dlr, dtok=dtok, dgamma=dgamma, dbeta=dbeta, d_start=d_start)
    launch("ttt_linear_bwd", q, len(end), arguments)
    return dq, dk, dv, dlr, dtok.sum(0), dgamma.sum(0), dbeta.sum(0), d_start


@linear_backward.register_fake
def _(
    d_out: Tensor, d_end: Tensor | None, q: Tensor, k: Tensor, v: Tensor, lr: Tensor, tok: Tensor, gamma: Tensor,
    beta: Tensor, end: Tensor, updates: Tensor, checkpoints: Tensor, segments: Tensor | None,
) -> Eight:  # fmt: skip
    dq, dk, dv, dlr, dtok, dgamma, dbeta, d_start = (x.new_empty(x.shape) for x in (q, k, v, lr, tok, gamma, beta, end))
    return dq, dk, dv, dlr, dtok, dgamma, dbeta, d_start


def _save(ctx: Any, inputs: tuple[Any, ...], output: Six) -> None:
    segments, save = inputs[10], inputs[12]
    ctx.set_materialize_grads(False)
    ctx.saved = save
    if save:
        ctx.save_for_backward(*inputs[:7], output[1], *output[4:], segments)


def _differentiate(ctx: Any, d_out: Tensor | None, d_end: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    if not ctx.saved:
        raise RuntimeError("ttt::linear_forward ran with save=False and cannot be differentiated; pass save=True")
    q, k, v, lr, tok, gamma, beta, end, updates, checkpoints, segments = ctx.saved_tensors
    d_out = torch.zeros_like(q) if d_out is None else d_out
    gradients = linear_backward(
        d_out, d_end, q, k, v, lr, tok, gamma, beta, end, updates, checkpoints, segments
    )  # fmt: skip
    return *gradients, None, None, None, None, None


linear_forward.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("ttt::linear_decode", mutates_args=("weights", "keys", "ghat", "count"))
def linear_decode(
    q: Tensor, k: Tensor, v: Tensor, lr: Tensor, tok: Tensor, gamma: Tensor, beta: Tensor, weights: Tensor,
    keys: Tensor, ghat: Tensor, count: Tensor, lengths: Tensor | None,
) -> Tensor:  # fmt: skip
    """Output [B, m, H, f] of m tokens after those in the state (as `linear_forward` returns it), which moves on.

    `count` [N] int32 says how many rows of the open mini-batch are taken; `lengths` [B] int32 how many of the m tokens
    count in each sequence. The output is zero beyond.
    """
    check(q=q, k=k, v=v, lr=lr, tok=tok, gamma=gamma, beta=beta, weights=weights, keys=keys, ghat=ghat)
    out = room(q, lengths)
    shared = problem(q, k, v, lr, tok, gamma, beta, None, EVERY)
    arguments = DecodeArgs(p=shared)
    arguments.set_in_place(weights=weights, keys=keys, ghat=ghat, count=count)
    arguments.set(lengths=lengths, out=out)
    launch("ttt_linear_decode", q, len(weights), arguments)
    return out


@linear_decode.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, lr: Tensor, tok: Tensor, gamma: Tensor, beta: Tensor, weights: Tensor,
    keys: Tensor, ghat: Tensor, count: Tensor, lengths: Tensor | None,
) -> Tensor:  # fmt: skip
    return q.new_empty(q.shape)


def room(like: Tensor, partial: Tensor | None) -> Tensor:
    """Room for tokens, zeros if a kernel may leave some out."""
    return like.new_empty(like.shape) if partial is None else like.new_zeros(like.shape)


def launch(kernel: str, q: Tensor, ctas: int, arguments: Arguments) -> None:
    """Start `ctas` CTAs where `q` lives."""
    if q.device.type == "cpu":
        emulation.launch(kernel, q.shape[3], ctas, arguments)
    else:
        loader.launch(kernel, q.shape[3], ctas, arguments, q.device)
