"""The inner gradient as the scans use it, forward and backward, with everything known beforehand folded away.

The rate-weighted gradient lr * dloss/dz is linear in the standardised z up to LN's own backward (`learner.gradient`):

    a = slope * x + offset     slope = lr gamma^2, offset = lr gamma (beta - t), both known before the scan
    Ghat = P(a),   P(a) = (a - mean a - x mean(a x)) / s

and P is symmetric. Without LN: x = z, P = identity, slope = lr, offset = -lr t. Shapes [N, K, f] throughout, N = B H.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ttt_impl.learner import EPSILON


class Step(NamedTuple):
    """What the backward of one inner gradient needs; without LN only `x` and `ghat` are set."""

    x: Tensor
    ghat: Tensor
    z: Tensor
    mean: Tensor
    rstd: Tensor
    a: Tensor


def inner_gradient(z: Tensor, slope: Tensor, offset: Tensor, norm: bool, ones: Tensor) -> Step:
    """Ghat from z; `ones` [2, f] holds the trivial weight and bias that make PyTorch's LayerNorm take its fast path."""
    if not norm:
        ghat = torch.addcmul(offset, slope, z)
        return Step(z, ghat, z, z, z, ghat)
    x, mean, rstd = torch.native_layer_norm(z, [z.shape[-1]], ones[0], ones[1], EPSILON)
    a = torch.addcmul(offset, slope, x)
    return Step(x, project(a, z, mean, rstd, ones), z, mean, rstd, a)


def inner_gradient_backward(
    dghat: Tensor, step: Step, slope: Tensor, norm: bool, ones: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of a and of z.

    da = P(dGhat), and since dx gathers slope da from a and, from P itself, -(mean(a x) dGhat + mean(dGhat x) a) / s,
    dz = P(slope da) - (mean(a x) da + mean(dGhat x) Ghat + mean(dGhat Ghat) x) / s, the last term being that of s.
    """
    if not norm:
        return dghat, slope * dghat
    x, ghat, z, mean, rstd, a = step
    da = project(dghat, z, mean, rstd, ones)
    dz = project(slope * da, z, mean, rstd, ones)
    width = -rstd / z.shape[-1]
    dz.addcmul_(da, width * (a * x).sum(-1, keepdim=True))
    dz.addcmul_(ghat, width * (dghat * x).sum(-1, keepdim=True))
    dz.addcmul_(x, width * (dghat * ghat).sum(-1, keepdim=True))
    return da, dz


def project(a: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, ones: Tensor) -> Tensor:
    """P(a), which is what PyTorch calls the backward of LayerNorm."""
    grad: Tensor = torch.ops.aten.native_layer_norm_backward.default(
        a, z, [z.shape[-1]], mean, rstd, ones[0], ones[1], [True, False, False]
    )[0]
    return grad
