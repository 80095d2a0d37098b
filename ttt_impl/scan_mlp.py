"""TTT-MLP's scan over mini-batches with its backward written out.

As in `scan_linear.py` the chain carries only the weights; queries are read for all mini-batches at once. Forward as in
`scan_autograd.py`, s = gelu's sigmoid. Backward, dW1 and dW2 the gradients of the weights after mini-batch m:

    queries (no chain)  dy2 = dz_bar W2^T + dS2 x2,          dS2 = -causal * (dz_bar Ghat2^T),     S2 = y2 x2^T
                        dz1_bar = dy2 gelu'(z1_bar),         dscores = -dz1_bar Ghat1^T,           dq = dz1_bar W1^T
    chain               dGhat1 = -scores^T dz1_bar - fast_step dW1          through Ghat1 = (Ghat2 W2^T) gelu'(z1)
                        dback  = dGhat1 gelu'(z1)                           back = Ghat2 W2^T
                        dGhat2 = -(causal * S2)^T dz_bar - last x2 dW2 + dback W2
                        (da, dz2) from dGhat2 by `inner_step.py`
                        dx2 = dS2^T y2 - last Ghat2 dW2^T + dz2 W2^T
                        dz1 = dx2 gelu'(z1) + dGhat1 back gelu''(z1),       dk = dz1 W1^T
    dW1 <- dW1 + q^T dz1_bar + k^T dz1              dW2 <- dW2 + y2^T dz_bar + x2^T dz2 + dback^T Ghat2
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_impl.gelu import gelu, gelu_curvature, gelu_slope
from ttt_impl.inner_step import Step, inner_gradient, inner_gradient_backward
from ttt_impl.learner import Weights
from ttt_impl.prepared import Prepared
from ttt_impl.scan_autograd import Resets, Scan
from ttt_impl.scan_linear import flat, unit_affine
from ttt_impl.state import Rows


def scan_mlp_fast(p: Prepared, start: Weights, norm: bool, resets: Resets, pending: Rows | None) -> Scan:
    """As `scan_autograd.scan_mlp`, faster; differentiable once."""
    z_bar, w1, w2, *rows = _ScanMLP.apply(*p, *start, *(resets.fresh or start), norm, resets.where, pending)
    return Scan(z_bar, (w1, w2), tuple(rows))


class _ScanMLP(torch.autograd.Function):
    """(q, k, fast_step, scores, slope, offset, causal, last, W1, W2, ...) -> (z_bar, W1, W2, Ghat1, x2, Ghat2)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, fast_step: Tensor, scores: Tensor, slope: Tensor, offset: Tensor,
        causal: Tensor, last: Tensor, w1_start: Tensor, w2_start: Tensor, w1_fresh: Tensor,
        w2_fresh: Tensor, norm: bool, resets: dict[int, Tensor], pending: Rows | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ones, count, hidden = unit_affine(slope), len(q), w1_start.shape[-1]
        all_w1, all_w2 = (w.new_empty(count + 1, *w.shape) for w in (w1_start, w2_start))
        all_w1[0], all_w2[0] = w1_start, w2_start
        w1, w2 = all_w1.unbind(), all_w2.unbind()
        ghat1, ghat2 = slope.new_empty(*slope.shape[:-1], hidden), torch.empty_like(slope)
        x2 = slope.new_empty(*slope.shape[:-1], w2_start.shape[1])
        x2[..., hidden:] = 1
        kept: list[Tensor] = []
        for m in range(count):
            if m in resets:
                torch.where(resets[m], w1_fresh, w1[m], out=w1[m])
                torch.where(resets[m], w2_fresh, w2[m], out=w2[m])
            z1 = torch.bmm(k[m], w1[m])
            activation, s = gelu(z1, out=x2[m, ..., :hidden])
            step = inner_gradient(torch.bmm(x2[m], w2[m]), slope[m], offset[m], norm, ones)
            back = torch.bmm(step.ghat, w2[m][:, :hidden].mT)
            torch.mul(back, tilt := gelu_slope(z1, activation, s), out=ghat1[m])
            ghat2[m] = step.ghat
            if m == 0 and pending is not None:
                ghat1[0] += pending[0]
                ghat2[0] += pending[1]
            torch.baddbmm(w1[m], fast_step[m].mT, ghat1[m], alpha=-1, out=w1[m + 1])
            torch.baddbmm(w2[m], x2[m].mT, last[m] * ghat2[m], alpha=-1, out=w2[m + 1])
            kept += [*step, z1, s, tilt, back]
        z1_bar, s_bar, y2, z_bar = _read(q, scores, causal, all_w1[:-1], all_w2[:-1], ghat1, x2, ghat2)
        ctx.save_for_backward(
            q, k, fast_step, scores, slope, causal, last, all_w1, all_w2, ghat1, x2, ghat2, z1_bar, s_bar, y2, *kept
        )
        ctx.norm, ctx.resets = norm, resets
        ctx.mark_non_differentiable(ghat1, x2, ghat2)
        return z_bar, all_w1[-1].clone(), all_w2[-1].clone(), ghat1, x2, ghat2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz_bar: Tensor, dw1: Tensor, dw2: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (q, k, fast_step, scores, slope, causal, last, all_w1, all_w2, ghat1, x2, ghat2, z1_bar, s_bar, y2,
         *kept) = ctx.saved_tensors  # fmt: skip
        ones, hidden = unit_affine(slope), z1_bar.shape[-1]
        queries = _read_backward(dz_bar, scores, causal, all_w2[:-1], ghat1, x2, ghat2, z1_bar, s_bar, y2)
        dz1_bar, dscores, dcausal, dghat1_read, dghat2_read, dx2_read = queries
        dz1, dfast_step = torch.empty_like(dz1_bar), torch.empty_like(fast_step)
        dslope, doffset, dlast = torch.empty_like(slope), torch.empty_like(slope), torch.empty_like(slope)
        dfresh = [torch.zeros_like(dw1), torch.zeros_like(dw2)]
        for m in reversed(range(len(q))):
            *fields, z1, s, tilt, back = kept[10 * m : 10 * m + 10]
            step = Step(*fields)
            w2 = all_w2[m]
            torch.bmm(ghat1[m], dw1.mT, out=dfast_step[m])
            torch.bmm(x2[m], dw2, out=dlast[m])
            dghat1 = torch.baddbmm(dghat1_read[m], fast_step[m], dw1, alpha=-1)
            dback = dghat1 * tilt
            dghat2 = torch.baddbmm(dghat2_read[m], dback, w2[:, :hidden])
            dghat2.addcmul_(last[m], dlast[m], value=-1)
            da, dz2 = inner_gradient_backward(dghat2, step, slope[m], ctx.norm, ones)
            torch.mul(da, step.x, out=dslope[m])
            doffset[m] = da
            dx2 = torch.baddbmm(dx2_read[m], last[m] * ghat2[m], dw2[:, :hidden].mT, alpha=-1)
            dx2.baddbmm_(dz2, w2[:, :hidden].mT)
            torch.mul(dx2, tilt, out=dz1[m])
            dz1[m].addcmul_(dghat1 * back, gelu_curvature(z1, s))
            dw1 = torch.baddbmm(dw1, q[m].mT, dz1_bar[m]).baddbmm_(k[m].mT, dz1[m])
            dw2 = torch.baddbmm(dw2, y2[m].mT, dz_bar[m]).baddbmm_(x2[m].mT, dz2)
            dw2[:, :hidden].baddbmm_(dback.mT, step.ghat)
            if m in ctx.resets:
                fresh = ctx.resets[m]
                dfresh = [d + torch.where(fresh, dw, 0) for d, dw in zip(dfresh, (dw1, dw2), strict=True)]
                dw1, dw2 = torch.where(fresh, 0, dw1), torch.where(fresh, 0, dw2)
        w1t = flat(all_w1[:-1]).mT
        dq, dk = (torch.bmm(flat(d), w1t).view_as(q) for d in (dz1_bar, dz1))
        dlast_all = (dlast * ghat2).sum((2, 3), keepdim=True).neg_()
        return (
            dq, dk, dfast_step.neg_(), dscores, dslope, doffset, dcausal, dlast_all,
            dw1, dw2, *dfresh, None, None, None,
        )  # fmt: skip


def _read(
    q: Tensor, scores: Tensor, causal: Tensor, w1: Tensor, w2: Tensor, ghat1: Tensor, x2: Tensor, ghat2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(z1_bar, its s, y2, z_bar): the learner applied to the queries, each token seeing its own update."""
    z1_bar = torch.baddbmm(flat(q) @ flat(w1), flat(scores), flat(ghat1), alpha=-1)
    y2, hidden = torch.empty_like(flat(x2)), z1_bar.shape[-1]
    y2[..., hidden:] = 1
    _, s = gelu(z1_bar, out=y2[..., :hidden])
    z_bar = torch.baddbmm(y2 @ flat(w2), (y2 @ flat(x2).mT).mul_(causal), flat(ghat2), alpha=-1)
    return z1_bar.view_as(ghat1), s.view_as(ghat1), y2.view_as(x2), z_bar.view_as(ghat2)


def _read_backward(
    dz_bar: Tensor, scores: Tensor, causal: Tensor, w2: Tensor, ghat1: Tensor, x2: Tensor, ghat2: Tensor,
    z1_bar: Tensor, s_bar: Tensor, y2: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of (z1_bar, scores, causal) and, from the queries alone, of (Ghat1, Ghat2, x2 without the ones)."""
    hidden, back = z1_bar.shape[-1], flat(dz_bar)
    similarity = flat(y2) @ flat(x2).mT
    dproduct = (back @ flat(ghat2).mT).neg_()
    dghat2 = ((causal * similarity).mT @ back).neg_()
    dsimilarity = causal * dproduct
    dy2 = torch.baddbmm(back @ flat(w2)[:, :hidden].mT, dsimilarity, flat(x2)[..., :hidden])
    dz1_bar = dy2.mul_(gelu_slope(flat(z1_bar), flat(y2)[..., :hidden], flat(s_bar)))
    dscores = (dz1_bar @ flat(ghat1).mT).neg_()
    dghat1 = (flat(scores).mT @ dz1_bar).neg_()
    dx2 = dsimilarity.mT @ flat(y2)[..., :hidden]
    dcausal = (dproduct * similarity).sum(0)
    return (
        dz1_bar.view_as(z1_bar), dscores.view_as(scores), dcausal,
        dghat1.view_as(ghat1), dghat2.view_as(ghat2), dx2.view_as(z1_bar),
    )  # fmt: skip
