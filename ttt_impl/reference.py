"""TTT one token at a time, as the paper says it: the form that everything else is measured against.

For token t, number i of its mini-batch (paper, Sec. 2.4, Eq. 6, with the learned rates of Sec. 2.7):

    S_i = S_(i-1) + lr_t * dloss(W; k_t, v_t)/dW      gradient taken at W, the weights at the mini-batch's start
    W_i = W - tok_i * S_i                             so token i counts tok_i * lr_j for every j <= i
    o_t = f(q_t; W_i)                                 the output sees the token's own update
    after the last token of a mini-batch, W becomes W_i

Slow and obvious. `primal_linear` and `primal_mlp` write the gradient of the loss out by hand; `primal_autograd` asks
`torch.func.grad` for the gradient of the stated loss and shares no formula with them. A mini-batch left open at the
end keeps its W: `Primal.weights` are the weights after the last complete mini-batch.

"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ttt_impl.learner import PUBLISHED, Inputs, Learner, Weights


class Primal(NamedTuple):
    """Outputs [B, H, L, f] and the weights after the last complete mini-batch."""

    output: Tensor
    weights: Weights


def apply_learner(x: Tensor, weights: Weights) -> Tensor:
    """f_res(x) for one token; x [B, H, 1, f]."""
    z = x @ weights[0] + weights[1]
    if len(weights) == 2:
        return z
    return F.gelu(z, approximate="tanh") @ weights[2] + weights[3]


def primal_linear(inputs: Inputs, weights: Weights, learner: Learner = PUBLISHED) -> Primal:
    """TTT-Linear; weights (W1 [B, H, f, f], b1 [B, H, 1, f])."""
    gamma, beta = inputs.gamma[:, None], inputs.beta[:, None]

    def gradient(w: Weights, k: Tensor, v: Tensor) -> Weights:
        z = k @ w[0] + w[1]
        g = learner.gradient(z, learner.target(k, v), gamma, beta)
        return k.mT @ g, g

    return _walk(gradient, inputs, weights, learner)


def primal_mlp(inputs: Inputs, weights: Weights, learner: Learner = PUBLISHED) -> Primal:
    """TTT-MLP; weights (W1 [B, H, f, 4f], b1 [B, H, 1, 4f], W2 [B, H, 4f, f], b2 [B, H, 1, f])."""
    gamma, beta = inputs.gamma[:, None], inputs.beta[:, None]

    def gradient(w: Weights, k: Tensor, v: Tensor) -> Weights:
        w1, b1, w2, b2 = w
        z1 = k @ w1 + b1
        hidden = F.gelu(z1, approximate="tanh")
        z2 = hidden @ w2 + b2
        g2 = learner.gradient(z2, learner.target(k, v), gamma, beta)
        g1 = (g2 @ w2.mT) * gelu_slope(z1)
        return k.mT @ g1, g1, hidden.mT @ g2, g2

    return _walk(gradient, inputs, weights, learner)


def primal_autograd(inputs: Inputs, weights: Weights, learner: Learner = PUBLISHED) -> Primal:
    """Either learner, its inner gradient taken by `torch.func.grad` from the stated loss 1/2 ||f(k; W) - v||^2."""
    gamma, beta = inputs.gamma[:, None], inputs.beta[:, None]

    def loss(w: Weights, k: Tensor, v: Tensor) -> Tensor:
        prediction = learner.output(k, apply_learner(k, w), gamma, beta)
        return 0.5 * (prediction - v).square().sum()

    return _walk(torch.func.grad(loss), inputs, weights, learner)


def gelu_slope(x: Tensor) -> Tensor:
    """Derivative of the tanh form of GELU, u = sqrt(2/pi) (x + 0.044715 x^3)."""
    c = (2 / torch.pi) ** 0.5
    tanh = torch.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * c * (1 + 3 * 0.044715 * x**2)


def _walk(
    gradient: Callable[[Weights, Tensor, Tensor], Weights], inputs: Inputs, weights: Weights, learner: Learner
) -> Primal:
    """Read the tokens in order, one inner gradient each, one update a mini-batch."""
    size, outputs = len(inputs.tok), []
    gamma, beta = inputs.gamma[:, None], inputs.beta[:, None]
    total: Weights = tuple(torch.zeros_like(w) for w in weights)
    for t in range(inputs.q.shape[2]):
        i = t % size
        q, k, v = (x[:, :, t : t + 1] for x in inputs[:3])
        rate = inputs.lr[:, :, t : t + 1, None]
        step = gradient(weights, k, v)
        if not learner.bias:
            step = tuple(g if n % 2 == 0 else torch.zeros_like(g) for n, g in enumerate(step))
        total = tuple(s + rate * g for s, g in zip(total, step, strict=True))
        now = tuple(w - inputs.tok[i] * s for w, s in zip(weights, total, strict=True))
        outputs.append(learner.output(q, apply_learner(q, now), gamma, beta))
        if i == size - 1:
            weights, total = now, tuple(torch.zeros_like(w) for w in weights)
    return Primal(torch.cat(outputs, 2), weights)
