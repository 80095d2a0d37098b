"""TTT-MLP's scan over mini-batches with its backward written out.

The weights of a head are large beside its tokens, so no state is kept for the backward pass, only the gradient rows:
the update is undone. W2's undoing needs x2, which needs W1, which is undone first; nothing feeds back, so rounding
does not grow. What else the backward needs is computed again. Names as in `scan_autograd.py`; from the last mini-batch
to the first, with dW1 and dW2 the gradients of the weights after it, S = y2 x2^T, back = Ghat2 W2^T:

    what the queries read   dscores2 = -dz_bar Ghat2^T,  dS = causal * dscores2
                            dy2 = dz_bar W2^T + dS x2,   dz1_bar = dy2 gelu'(z1_bar),   dscores = -dz1_bar Ghat1^T
    through Ghat1           dGhat1 = -scores^T dz1_bar - fast_step dW1,   dback = dGhat1 gelu'(z1)
    through Ghat2           dGhat2 = -(causal * S)^T dz_bar - last x2 dW2 + dback W2
                            (da, dz2) from dGhat2 by `inner_step.py`
    the hidden layer        dx2 = dS^T y2 - last Ghat2 dW2^T + dz2 W2^T
                            dz1 = dx2 gelu'(z1) + dGhat1 back gelu''(z1)
    inputs                  dq = dz1_bar W1^T,  dk = dz1 W1^T,  dfast_step = -Ghat1 dW1^T
    weights                 dW1 <- dW1 + q^T dz1_bar + k^T dz1
                            dW2 <- dW2 + y2^T dz_bar + x2^T dz2 + dback^T Ghat2

Keys and queries of a mini-batch lie one after the other (K rows each), so products with the same weight are one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_impl.gelu import gelu_derivatives, gelu_slope, sigmoid_of
from ttt_impl.inner_step import inner_gradient, inner_gradient_backward
from ttt_impl.learner import Weights
from ttt_impl.prepared import Prepared
from ttt_impl.scan_autograd import Resets, Scan
from ttt_impl.scan_linear import full_precision, unit_affine
from ttt_impl.state import Rows


def scan_mlp_fast(p: Prepared, start: Weights, norm: bool, resets: Resets, pending: Rows | None) -> Scan:
    """As `scan_autograd.scan_mlp`, faster; differentiable once."""
    z_bar, w1, w2, *ghats = _ScanMLP.apply(
        torch.cat([p.k, p.q], 2),
        *p[2:],
        *start,
        *(resets.fresh or map(torch.detach, start)),
        norm,
        resets.where,
        pending,
    )
    return Scan(z_bar, (w1, w2), tuple(ghats))


def _widened(x: Tensor, w2: Tensor) -> Tensor:
    """A column of ones on the right where W2 has a bias row."""
    return x if x.shape[-1] == w2.shape[1] else torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


class _Queries(NamedTuple):
    """Gradients that flow from the outputs of one mini-batch, without the chain over mini-batches."""

    z1_bar: Tensor
    scores: Tensor
    causal: Tensor
    ghat1: Tensor
    ghat2: Tensor
    x2: Tensor


def _queries_backward(
    dz_bar: Tensor, z1_bar: Tensor, y2: Tensor, x2: Tensor, w2: Tensor, ghat1: Tensor, ghat2: Tensor,
    scores: Tensor, causal: Tensor, slope_bar: Tensor,
) -> _Queries:  # fmt: skip
    """Backward of z_bar = y2 W2 - (causal * S) Ghat2, y2 = gelu(z1_bar), z1_bar = q W1 - scores Ghat1."""
    hidden = z1_bar.shape[-1]
    similarity = torch.bmm(y2, x2.mT)
    dproduct = torch.bmm(dz_bar, ghat2.mT).neg_()
    dsimilarity = causal * dproduct
    dy2 = torch.bmm(dz_bar, w2[:, :hidden].mT).baddbmm_(dsimilarity, x2[..., :hidden])
    dz1_bar = dy2.mul_(slope_bar)
    return _Queries(
        dz1_bar,
        torch.bmm(dz1_bar, ghat1.mT).neg_(),
        dproduct.mul_(similarity),
        torch.bmm(scores.mT, dz1_bar).neg_(),
        torch.bmm(similarity.mul_(causal).mT, dz_bar).neg_(),
        torch.bmm(dsimilarity.mT, y2[..., :hidden]),
    )


class _ScanMLP(torch.autograd.Function):
    """(k and q, fast_step, scores, slope, offset, causal, last, W1, W2, ...) -> (z_bar, W1, W2, Ghat1, Ghat2)."""

    @staticmethod
    def forward(
        ctx: Any, kq: Tensor, fast_step: Tensor, scores: Tensor, slope: Tensor, offset: Tensor, causal: Tensor,
        last: Tensor, w1_start: Tensor, w2_start: Tensor, w1_fresh: Tensor, w2_fresh: Tensor,
        norm: bool, resets: dict[int, Tensor], pending: Rows | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ones, size, hidden = unit_affine(slope), slope.shape[2], w1_start.shape[-1]
        w1, w2 = w1_start.clone(), w2_start.clone()
        ghat1, ghat2, z_bar = (slope.new_empty(*slope.shape[:3], width) for width in (hidden, *2 * slope.shape[3:]))
        before_reset: list[Tensor] = []
        for m in range(len(kq)):
            if m in resets:
                before_reset += [w1, w2]
                w1, w2 = torch.where(resets[m], w1_fresh, w1), torch.where(resets[m], w2_fresh, w2)
            z = torch.bmm(kq[m], w1)
            s = sigmoid_of(z[:, :size])
            x2 = _widened(z[:, :size] * s, w2)
            step = inner_gradient(torch.bmm(x2, w2), slope[m], offset[m], norm, ones)
            back = torch.bmm(step.ghat, w2[:, :hidden].mT)
            torch.mul(back, gelu_slope(z[:, :size], s), out=ghat1[m])
            ghat2[m] = step.ghat
            if m == 0 and pending is not None:
                ghat1[0] += pending[0]
                ghat2[0] += pending[1]
            z1_bar = z[:, size:].baddbmm_(scores[m], ghat1[m], alpha=-1)
            y2 = _widened(z1_bar * sigmoid_of(z1_bar), w2)
            product = torch.bmm(y2, x2.mT).mul_(causal)
            torch.baddbmm(torch.bmm(y2, w2), product, ghat2[m], alpha=-1, out=z_bar[m])
            w1.baddbmm_(fast_step[m].mT, ghat1[m], alpha=-1)
            w2.baddbmm_(x2.mT, last[m] * ghat2[m], alpha=-1)
        ctx.save_for_backward(
            kq, fast_step, scores, slope, offset, causal, last, ghat1, ghat2, w1.clone(), w2.clone(), *before_reset
        )
        ctx.norm, ctx.resets = norm, resets
        ctx.mark_non_differentiable(ghat1, ghat2)
        return z_bar, w1, w2, ghat1, ghat2

    @staticmethod
    @once_differentiable
    @full_precision
    def backward(ctx: Any, dz_bar: Tensor, dw1: Tensor, dw2: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        kq, fast_step, scores, slope, offset, causal, last, ghat1, ghat2, w1, w2, *before_reset = ctx.saved_tensors
        ones, size, hidden = unit_affine(slope), slope.shape[2], ghat1.shape[-1]
        dkq, dfast_step, dscores, dslope, doffset = (
            x.new_empty(x.shape) for x in (kq, fast_step, scores, slope, slope)
        )
        dcausal, dlast = torch.zeros_like(scores[0]), torch.empty_like(last)
        w1, w2, dw1, dw2 = w1.clone(), w2.clone(), dw1.clone(), dw2.clone()
        dfresh = [torch.zeros_like(dw1), torch.zeros_like(dw2)]
        for m in reversed(range(len(kq))):
            # Undo the update, and read the mini-batch again.
            w1.baddbmm_(fast_step[m].mT, ghat1[m])
            z = torch.bmm(kq[m], w1)
            z1, z1_bar = z[:, :size], z[:, size:].baddbmm_(scores[m], ghat1[m], alpha=-1)
            s, s_bar = sigmoid_of(z).split(size, 1)
            x2, y2 = _widened(z1 * s, w2), _widened(z1_bar * s_bar, w2)
            updates = last[m] * ghat2[m]
            w2.baddbmm_(x2.mT, updates)
            step = inner_gradient(torch.bmm(x2, w2), slope[m], offset[m], ctx.norm, ones)
            back = torch.bmm(step.ghat, w2[:, :hidden].mT)
            slope1, curvature1 = gelu_derivatives(z1, s)
            read = _queries_backward(
                dz_bar[m], z1_bar, y2, x2, w2, ghat1[m], ghat2[m], scores[m], causal, gelu_slope(z1_bar, s_bar)
            )
            dscores[m] = read.scores
            dcausal += read.causal
            # Through Ghat1 and Ghat2 to the two layers of the keys.
            dghat1 = read.ghat1.baddbmm_(fast_step[m], dw1, alpha=-1)
            dback = dghat1 * slope1
            x2_dw2 = torch.bmm(x2, dw2)
            dlast[m] = (x2_dw2 * ghat2[m]).sum((1, 2), keepdim=True).neg_()
            dghat2 = read.ghat2.baddbmm_(dback, w2[:, :hidden]).addcmul_(x2_dw2, last[m], value=-1)
            doffset[m], dz2 = inner_gradient_backward(dghat2, step, slope[m], ctx.norm, ones)
            torch.mul(doffset[m], step.x, out=dslope[m])
            dx2 = read.x2.baddbmm_(updates, dw2[:, :hidden].mT, alpha=-1).baddbmm_(dz2, w2[:, :hidden].mT)
            dz = torch.cat([dx2.mul_(slope1).addcmul_(dghat1.mul_(back), curvature1), read.z1_bar], 1)
            # To the inputs and the weights.
            torch.bmm(dz, w1.mT, out=dkq[m])
            torch.bmm(ghat1[m], dw1.mT, out=dfast_step[m])
            dw1.baddbmm_(kq[m].mT, dz)
            dw2.baddbmm_(torch.cat([x2, y2], 1).mT, torch.cat([dz2, dz_bar[m]], 1))
            dw2[:, :hidden].baddbmm_(dback.mT, step.ghat)
            if m in ctx.resets:
                w2, w1 = before_reset.pop().clone(), before_reset.pop().clone()
                for total, dw in zip(dfresh, (dw1, dw2), strict=True):
                    total += torch.where(ctx.resets[m], dw, 0)
                    dw.masked_fill_(ctx.resets[m], 0)
        return (
            dkq, dfast_step.neg_(), dscores, dslope, doffset, dcausal.sum(0), dlast, dw1, dw2, *dfresh,
            None, None, None,
        )  # fmt: skip
