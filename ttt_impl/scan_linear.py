"""TTT-Linear's scan over mini-batches with its backward written out.

Only W runs through the chain, so the loop holds one product, the inner gradient and the update; what the queries read
is computed afterwards for all mini-batches at once. Backward, from the last mini-batch to the first, dW the gradient
of the weights after mini-batch m and names as in `prepared.py`:

    dGhat   = -scores^T dz_bar - fast_step dW            dfast_step = -Ghat dW^T
    (da, dz) from dGhat by `inner_step.py`               dslope = da x, doffset = da
    dq = dz_bar W^T, dk = dz W^T                         dscores = -dz_bar Ghat^T
    dW <- dW + q^T dz_bar + k^T dz

Autograd would arrive at the same numbers with three times the operations.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_impl.inner_step import Step, inner_gradient, inner_gradient_backward
from ttt_impl.learner import Weights
from ttt_impl.prepared import Prepared
from ttt_impl.scan_autograd import Resets, Scan
from ttt_impl.state import Rows

Backward = TypeVar("Backward", bound=Callable[..., Any])


def full_precision(backward: Backward) -> Backward:
    """Keep autocast out of a hand-written backward, as `ops.py` keeps it out of the forward."""

    @wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> Any:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    return cast(Backward, run)


def scan_linear_fast(p: Prepared, start: Weights, norm: bool, resets: Resets, pending: Rows | None) -> Scan:
    """As `scan_autograd.scan_linear`, faster; differentiable once."""
    given = pending[0] if pending else None
    z_bar, w, ghat = _ScanLinear.apply(
        *p[:6], *start, *(resets.fresh or map(torch.detach, start)), norm, resets.where, given
    )
    return Scan(z_bar, (w,), (ghat,))


class _ScanLinear(torch.autograd.Function):
    """(q, k, fast_step, scores, slope, offset, W, W0) -> (z_bar, W at the end, Ghat)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, fast_step: Tensor, scores: Tensor, slope: Tensor, offset: Tensor,
        start: Tensor, fresh: Tensor, norm: bool, resets: dict[int, Tensor], pending: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        ones = unit_affine(slope)
        weights = start.new_empty(len(q) + 1, *start.shape)
        weights[0] = start
        w, ghat, steps = weights.unbind(), torch.empty_like(slope), []
        walk = zip(k.unbind(), fast_step.mT.unbind(), slope.unbind(), offset.unbind(), ghat.unbind(), strict=True)
        for m, (key, update, tilt, shift, row) in enumerate(walk):
            if m in resets:
                torch.where(resets[m], fresh, w[m], out=w[m])
            step = inner_gradient(torch.bmm(key, w[m]), tilt, shift, norm, ones)
            torch.add(step.ghat, pending, out=row) if m == 0 and pending is not None else row.copy_(step.ghat)
            torch.baddbmm(w[m], update, row, alpha=-1, out=w[m + 1])
            steps.append(step)
        z_bar = torch.baddbmm(flat(q) @ flat(weights[:-1]), flat(scores), flat(ghat), alpha=-1).view_as(slope)
        ctx.save_for_backward(q, k, fast_step, scores, slope, weights, ghat, *(x for step in steps for x in step))
        ctx.norm, ctx.resets = norm, resets
        ctx.mark_non_differentiable(ghat)
        return z_bar, weights[-1].clone(), ghat

    @staticmethod
    @once_differentiable
    @full_precision
    def backward(ctx: Any, dz_bar: Tensor, dw: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, fast_step, scores, slope, weights, ghat, *flat_steps = ctx.saved_tensors
        ones, size = unit_affine(slope), q.shape[2]
        dfresh = torch.zeros_like(dw)
        steps = [Step(*flat_steps[i : i + 6]) for i in range(0, len(flat_steps), 6)]
        dghat = torch.bmm(flat(scores).mT, flat(dz_bar)).neg_().view_as(slope)
        dboth = torch.cat([dz_bar, dz_bar], 2)
        both = torch.cat([q, k], 2).mT
        dfast_step, dslope, doffset = (x.new_empty(x.shape) for x in (fast_step, slope, slope))
        for m in reversed(range(len(q))):
            step, mutable = steps[m], dboth[m]
            torch.bmm(ghat[m], dw.mT, out=dfast_step[m])
            da, dz = inner_gradient_backward(
                torch.baddbmm(dghat[m], fast_step[m], dw, alpha=-1), step, slope[m], ctx.norm, ones
            )
            torch.mul(da, step.x, out=dslope[m])
            doffset[m] = da
            mutable[:, size:] = dz
            dw = torch.baddbmm(dw, both[m], mutable)
            if m in ctx.resets:
                dfresh = dfresh + torch.where(ctx.resets[m], dw, 0)
                dw = torch.where(ctx.resets[m], 0, dw)
        dboth_in = torch.bmm(flat(dboth), flat(weights[:-1]).mT).view(*both.mT.shape)
        dscores = torch.bmm(flat(dz_bar), flat(ghat).mT).neg_().view_as(scores)
        dq, dk = dboth_in.split(size, 2)
        return dq, dk, dfast_step.neg_(), dscores, dslope, doffset, dw, dfresh, None, None, None


def unit_affine(like: Tensor) -> Tensor:
    """LayerNorm weight 1 and bias 0, [2, f]."""
    return torch.stack([like.new_ones(like.shape[-1]), like.new_zeros(like.shape[-1])])


def flat(x: Tensor) -> Tensor:
    """[M, N, ...] -> [M * N, ...]."""
    return x.flatten(0, 1)
