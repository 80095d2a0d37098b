"""Mamba's selective scan in plain PyTorch, forward and backward, quick enough to train on a CPU.

N states for each of D channels follow the recurrence (Gu & Dao, arXiv 2312.00752, equations 2 and 4, algorithm 2)

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t        y_t = C_t · h_t + D x_t

which is sequential in t and needs only two operations a state and step. In PyTorch the cost lies around it, and
three things keep that small. Autograd does not see the loop: the backward is written by hand, a second loop that
runs the gradient of h backwards in time. All that is not sequential (exponentials, outer products, sums over
states or channels) is done for a chunk of steps at once, in buffers that stay in the processor's cache. And no
[L, B, N, D] tensor is ever kept: the forward saves the state at each chunk's start, from which the backward
computes the chunk again.

Inside, time is the first axis and channels the last, so that each step is one stretch of memory. A model that
keeps its activations in that order ([B, L, D] views of [L, B, D] memory) pays for no copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from baselines._precision import at_least_float32

CHUNK_ELEMENTS = 2**17
"""Elements in one chunk's buffer: half a MiB in float32, so that the backward's three fit a core's L2 cache."""

LOG2E = 1.4426950408889634
"""exp(x) = 2^(x log2(e)): on a CPU, PyTorch's exp2 takes less than half the time of its exp."""

LEAST_EXPONENT = -115.0
"""2^-115 = 2e-35 forgets as well as zero does; from -126 on exp2 underflows, which is 100 times slower."""


@torch.compiler.disable
def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan `x` [B, L, D] with steps `dt` [B, L, D] > 0: returns y [B, L, D] and the last state [B, D, N].

    A [D, N] is negative, B and C are [B, L, N], the skip D is [D]; a gate z [B, L, D] multiplies y by silu(z).
    Starts from `initial_state` [B, D, N] or from zero; differentiable in every argument. Lower precisions are
    computed in float32; y has the type of x.
    """
    if initial_state is None:
        initial_state = A.new_zeros(x.shape[0], *A.shape)
    by_time = [at_least_float32(v).transpose(0, 1).contiguous() for v in (x, dt, B, C)]
    by_state = [at_least_float32(v).transpose(-1, -2).contiguous() for v in (A, initial_state)]
    y, state = _SelectiveScan.apply(*by_time, *by_state, at_least_float32(D), torch.is_grad_enabled())
    y = y.transpose(0, 1)
    if z is not None:
        y = y * F.silu(at_least_float32(z))
    return y.to(x.dtype), state.transpose(-1, -2)


def selective_step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """One step of the scan: y [B, D] of x, dt [B, D] and B, C [B, N]; moves `state` [B, D, N] on in place."""
    state.mul_(torch.exp(dt.unsqueeze(-1) * A)).addcmul_((dt * x).unsqueeze(-1), B.unsqueeze(-2))
    return torch.addcmul((state @ C.unsqueeze(-1)).squeeze(-1), D, x)


class _SelectiveScan(torch.autograd.Function):
    """x, dt [L, B, D], B, C [L, B, N], A [N, D], h0 [B, N, D], D [D] -> y [L, B, D], last state [B, N, D].

    `saves` tells whether a backward can follow, which needs the state at each chunk's start.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, h0: Tensor, D: Tensor, saves: bool
    ) -> tuple[Tensor, Tensor]:
        rows = len(h0)
        steps = min(max(1, CHUNK_ELEMENTS // h0.numel()), len(x))
        decay, h = _Buffer(steps, h0), _Buffer(steps + 1, h0)
        rate = A * LOG2E
        bounded = bool(dt.max() * rate.min() < LEAST_EXPONENT)
        y, starts, state = x * D, [], h0
        for u_, dt_, B_, C_, y_ in zip(*(_chunks(v, steps) for v in (dt * x, dt, B, C, y)), strict=True):
            h.steps[0].copy_(state)
            if saves:
                starts.append(state.clone())
            state = _run(u_, dt_, rate, B_, decay, h, bounded)
            y_.baddbmm_(C_, h.flat[rows : rows + len(u_)])
        ctx.save_for_backward(x, dt, B, C, A, D, *starts)
        ctx.steps, ctx.bounded = steps, bounded
        return y, state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        """With g_t the gradient of h_t: g_t = C_t grad_y_t + exp(dt_{t+1} A) g_{t+1}, from the last step to the first.

        The gradient of the exponent dt_t A is q_t = g_t exp(dt_t A) h_{t-1}; all others are products with g or q.
        """
        x, dt, B, C, A, D, *starts = ctx.saved_tensors
        rows = len(starts[0])
        decay, h, g = (_Buffer(n, starts[0]) for n in (ctx.steps, ctx.steps + 1, ctx.steps))
        grad_y, carry = grad_y.contiguous(), grad_state.clone()
        du, ddt, dB, dC = (torch.empty_like(v) for v in (x, dt, B, C))
        rate, dA = A * LOG2E, torch.zeros_like(A)
        chunked = (_chunks(v, ctx.steps) for v in (dt * x, dt, B, C, grad_y, du, ddt, dB, dC))
        for start, *chunk in reversed(list(zip(starts, *chunked, strict=True))):
            u_, dt_, B_, C_, grad_y_, du_, ddt_, dB_, dC_ = chunk
            h.steps[0].copy_(start)
            _run(u_, dt_, rate, B_, decay, h, ctx.bounded)
            size = len(u_)
            g_, h_before, h_ = g.flat[:size], h.flat[:size], h.flat[rows : rows + size]
            torch.mul(C_.transpose(1, 2), grad_y_, out=g_)
            _run_back(size // rows, decay, g, carry)
            torch.bmm(B_, g_, out=du_)
            torch.bmm(u_, g_.transpose(1, 2), out=dB_)
            torch.bmm(grad_y_, h_.transpose(1, 2), out=dC_)
            q_ = decay.flat[:size].mul_(g_).mul_(h_before)
            torch.sum(torch.mul(q_, A, out=g_), 1, keepdim=True, out=ddt_)
            dA += q_.mul_(dt_).sum(0)
        dx = torch.addcmul(grad_y * D, du, dt)
        return dx, ddt.addcmul_(du, x), dB, dC, dA, carry, (grad_y * x).sum((0, 1)), None


class _Buffer:
    """Room for n states [B, N, D]: `flat` [n B, N, D] for a whole chunk, `steps` its n views [B, N, D]."""

    def __init__(self, n: int, state: Tensor) -> None:
        self.flat = state.new_empty(n * len(state), *state.shape[1:])
        self.steps = self.flat.split(len(state))


def _chunks(values: Tensor, steps: int) -> tuple[Tensor, ...]:
    """`values` [L, B, D] as views [steps B, 1, D], ready for batched products with a buffer's `flat`."""
    return values.flatten(0, 1).unsqueeze(1).split(steps * values.shape[1])


def _run(u: Tensor, dt: Tensor, rate: Tensor, B: Tensor, decay: _Buffer, h: _Buffer, bounded: bool) -> Tensor:
    """Fill `decay` with 2^(dt rate), and `h` with the states that follow `h.steps[0]`; returns the last one."""
    size, rows = len(u), len(h.steps[0])
    exponent = torch.mul(dt, rate, out=decay.flat[:size])
    if bounded:
        exponent.clamp_(min=LEAST_EXPONENT)
    exponent.exp2_()
    torch.mul(u, B.transpose(1, 2), out=h.flat[rows : rows + size])
    state = h.steps[0]
    for decay_t, h_t in zip(decay.steps[: size // rows], h.steps[1:], strict=False):
        state = h_t.addcmul_(decay_t, state)
    return state


def _run_back(steps: int, decay: _Buffer, g: _Buffer, carry: Tensor) -> None:
    """Turn `g`, which holds each step's own gradient, into that of all later steps too.

    `carry` brings the gradient of the last state from the chunk after this one, and takes that of the first state on.
    """
    g_t = g.steps[steps - 1].add_(carry)
    for t in range(steps - 1, 0, -1):
        g_t = g.steps[t - 1].addcmul_(decay.steps[t], g_t)
    torch.mul(decay.steps[0], g_t, out=carry)
