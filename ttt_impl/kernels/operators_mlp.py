"""TTT-MLP's kernels as operators of torch; see `operators.py` for what TTT-Linear's have in common with them.

    ttt::mlp_forward     functional; differentiable when told to save what the backward pass reads
    ttt::mlp_backward    functional
    ttt::mlp_decode      changes its state in place

The state is that of `../state.py`: W1 with b1 [N, f + 1, 4f] and W2 with b2 [N, 4f + 1, f], N = S * H.
"""

from typing import Any

import torch
from torch import Tensor

from ttt_impl.kernels import operators
from ttt_impl.kernels.arguments import (
    KERNELS,
    MLP_WIDTHS,
    TOKENS,
    MLPBackwardArgs,
    MLPDecodeArgs,
    MLPForwardArgs,
    check,
    mlp_gradients,
    problem,
)

Nine = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("ttt::mlp_forward", mutates_args=())
def mlp_forward(
    q: Tensor, k: Tensor, v: Tensor, lr: Tensor, tok: Tensor, gamma: Tensor, beta: Tensor, start1: Tensor,
    start2: Tensor, keys: Tensor | None, ghat2: Tensor | None, segments: Tensor | None, mini_batches: int, save: bool,
) -> Nine:  # fmt: skip
    """TTT-MLP over q, k, v [B, L, H, f] from `start1`, `start2`, lr [B, H, L].

    Returns out [B, L, H, f]; W1 and W2 after the last full mini-batch; keys [N, 16, f + 1], Ghat1 [N, 16, 4f] and Ghat2
    [N, 16, f] of the mini-batch left open; and what the backward pass reads, empty unless `save`: the operand of W1's
    update, Ghat2 in bf16, checkpoints. Of a mini-batch already open only keys and Ghat2 are read: the rest follows from
    them. Other arguments as for `linear_forward`.
    """
    check(MLP_WIDTHS, q=q, k=k, v=v, lr=lr, tok=tok, gamma=gamma, beta=beta, start1=start1, start2=start2)
    results = _forward_results(q, start1, start2, segments, mini_batches, save)
    out, end1, end2, end_keys, end_ghat1, end_ghat2, updates, saved_ghat2, checkpoints = results
    shared = problem(q, k, v, lr, tok, gamma, beta, segments, operators.EVERY)
    arguments = MLPForwardArgs(p=shared)
    arguments.set(start1=start1, start2=start2, keys=keys, ghat2=ghat2, out=out, end1=end1, end2=end2)
    arguments.set(end_keys=end_keys, end_ghat1=end_ghat1, end_ghat2=end_ghat2)
    if save:
        arguments.set(updates=updates, saved_ghat2=saved_ghat2, checkpoints=checkpoints)
    operators.launch("ttt_mlp_fwd", q, len(start1), arguments)
    return results


@mlp_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, lr: Tensor, tok: Tensor, gamma: Tensor, beta: Tensor, start1: Tensor,
    start2: Tensor, keys: Tensor | None, ghat2: Tensor | None, segments: Tensor | None, mini_batches: int, save: bool,
) -> Nine:  # fmt: skip
    return _forward_results(q, start1, start2, segments, mini_batches, save)


def _forward_results(
    q: Tensor, start1: Tensor, start2: Tensor, segments: Tensor | None, mini_batches: int, save: bool
) -> Nine:
    """Room for the results; where segments leave tokens out, the output is zero there."""
    batch, length, heads, width = q.shape
    count, total = len(start1), mini_batches or batch * -(-length // TOKENS)
    saved, checkpoints = (total, (total - 1) // operators.EVERY) if save else (0, 0)
    return (
        operators.room(q, segments),
        start1.new_empty(start1.shape),
        start2.new_empty(start2.shape),
        start1.new_zeros(count, TOKENS, width + 1),
        start1.new_zeros(count, TOKENS, 4 * width),
        start1.new_zeros(count, TOKENS, width),
        torch.empty(saved, heads, 32 * width, dtype=torch.int32, device=q.device),
        q.new_empty(saved, heads, TOKENS, width),
        start1.new_zeros(checkpoints, heads, start1[0].numel() + start2[0].numel()),
    )


@torch.compiler.assume_constant_result
def backward_kernel(device: torch.device) -> str:
    """The kernel whose gradients of the weights lie in shared memory, where a CTA may have that much of it."""
    if device.type == "cuda":
        most = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
        if most < KERNELS["ttt_mlp_bwd"].shared(MLP_WIDTHS[0]):
            return "ttt_mlp_bwd_small"
    return "ttt_mlp_bwd"


@torch.library.custom_op("ttt::mlp_backward", mutates_args=())
def mlp_backward(
    d_out: Tensor, d_end1: Tensor | None, d_end2: Tensor | None, q: Tensor, k: Tensor, v: Tensor, lr: Tensor,
    tok: Tensor, gamma: Tensor, beta: Tensor, end1: Tensor, end2: Tensor, updates: Tensor, saved_ghat2: Tensor,
    checkpoints: Tensor, segments: Tensor | None,
) -> Nine:  # fmt: skip
    """Gradients of q, k, v, lr, tok, gamma, beta, `start1`, `start2`, given those of the output and of the end."""
    check(MLP_WIDTHS, d_out=d_out, q=q, k=k, v=v, lr=lr, tok=tok, gamma=gamma, beta=beta, end1=end1, end2=end2)
    heads, width = q.shape[2:]
    dq, dk, dv = (operators.room(q, segments) for _ in range(3))
    dlr = lr.new_empty(lr.shape) if segments is None else lr.new_zeros(lr.shape)
    d_start1, d_start2, dtok = end1.new_empty(end1.shape), end2.new_empty(end2.shape), end1.new_empty(len(end1), TOKENS)
    dgamma, dbeta = (end1.new_empty(len(end1) // heads, heads, width) for _ in range(2))
    shared = problem(q, k, v, lr, tok, gamma, beta, segments, operators.EVERY)
    arguments = MLPBackwardArgs(p=shared)
    arguments.set(d_out=d_out, end1=end1, end2=end2, updates=updates, saved_ghat2=saved_ghat2, checkpoints=checkpoints)
    arguments.set(d_end1=d_end1, d_end2=d_end2, dq=dq, dk=dk, dv=dv, dlr=dlr, dtok=dtok, dgamma=dgamma, dbeta=dbeta)
    kernel = backward_kernel(q.device)
    scratch = end1.new_empty(len(end1), mlp_gradients(width)) if kernel == "ttt_mlp_bwd_small" else None
    arguments.set(d_start1=d_start1, d_start2=d_start2, scratch=scratch)
    operators.launch(kernel, q, len(end1), arguments)
    return dq, dk, dv, dlr, dtok.sum(0), dgamma.sum(0), dbeta.sum(0), d_start1, d_start2


@mlp_backward.register_fake
def _(
    d_out: Tensor, d_end1: Tensor | None, d_end2: Tensor | None, q: Tensor, k: Tensor, v: Tensor, lr: Tensor,
    tok: Tensor, gamma: Tensor, beta: Tensor, end1: Tensor, end2: Tensor, updates: Tensor, saved_ghat2: Tensor,
    checkpoints: Tensor, segments: Tensor | None,
) -> Nine:  # fmt: skip
    dq, dk, dv, dlr, dtok, dgamma, dbeta = (x.new_empty(x.shape) for x in (q, k, v, lr, tok, gamma, beta))
    return dq, dk, dv, dlr, dtok, dgamma, dbeta, end1.new_empty(end1.shape), end2.new_empty(end2.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Nine) -> None:
    segments, save = inputs[11], inputs[13]
    ctx.set_materialize_grads(False)
    ctx.saved = save
    if save:
        ctx.save_for_backward(*inputs[:7], *output[1:3], *output[6:], segments)


def _differentiate(
    ctx: Any, d_out: Tensor | None, d_end1: Tensor | None, d_end2: Tensor | None, *_: Tensor | None
) -> tuple[Any, ...]:
    if not ctx.saved:
        raise RuntimeError("ttt::mlp_forward ran with save=False and cannot be differentiated; pass save=True")
    q, *rest = ctx.saved_tensors
    d_out = torch.zeros_like(q) if d_out is None else d_out
    return *mlp_backward(d_out, d_end1, d_end2, q, *rest), *(None,) * 5


mlp_forward.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op(
    "ttt::mlp_decode", mutates_args=("weights1", "weights2", "keys", "ghat1", "ghat2", "x2", "count")
)
def mlp_decode(
    q: Tensor, k: Tensor, v: Tensor, lr: Tensor, tok: Tensor, gamma: Tensor, beta: Tensor, weights1: Tensor,
    weights2: Tensor, keys: Tensor, ghat1: Tensor, ghat2: Tensor, x2: Tensor, count: Tensor, lengths: Tensor | None,
) -> Tensor:  # fmt: skip
    """Output [B, m, H, f] of m tokens after those in the state, which moves on; as `linear_decode`.

    `x2` [N, 16, 4f + 1] is the hidden layer of the open mini-batch's keys, see `../state.py`.
    """
    state = {"weights1": weights1, "weights2": weights2, "keys": keys, "ghat1": ghat1, "ghat2": ghat2, "x2": x2}
    check(MLP_WIDTHS, q=q, k=k, v=v, lr=lr, tok=tok, gamma=gamma, beta=beta, **state)
    out = operators.room(q, lengths)
    shared = problem(q, k, v, lr, tok, gamma, beta, None, operators.EVERY)
    arguments = MLPDecodeArgs(p=shared)
    arguments.set_in_place(**state, count=count)
    arguments.set(lengths=lengths, out=out)
    operators.launch("ttt_mlp_decode", q, len(weights1), arguments)
    return out


@mlp_decode.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, lr: Tensor, tok: Tensor, gamma: Tensor, beta: Tensor, weights1: Tensor,
    weights2: Tensor, keys: Tensor, ghat1: Tensor, ghat2: Tensor, x2: Tensor, count: Tensor, lengths: Tensor | None,
) -> Tensor:  # fmt: skip
    return q.new_empty(q.shape)
