"""The two references: hand-written gradients against torch.func.grad of the stated loss, and the parts they share."""

import pytest
import torch
from torch.nn import functional as F

from tests.ttt_impl.helpers import EXACT, LEARNERS, expanded, gap, generator, initial_weights, inner_inputs
from ttt_impl.gelu import gelu, gelu_derivatives, gelu_slope
from ttt_impl.learner import Learner
from ttt_impl.reference import gelu_slope as reference_slope
from ttt_impl.reference import primal_autograd, primal_linear, primal_mlp

PRIMAL = {"linear": primal_linear, "mlp": primal_mlp}
ABLATIONS = [
    Learner(norm, residual, bias) for norm in (True, False) for residual in (True, False) for bias in (True, False)
]


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("learner", ABLATIONS, ids=str)
def test_explicit_gradients_are_those_of_the_stated_loss(kind: str, learner: Learner) -> None:
    inputs = inner_inputs(11, 4, scale=4.0 if learner.norm else 0.5)
    weights = expanded(initial_weights(kind, learner=learner), 2)
    explicit = PRIMAL[kind](inputs, weights, learner)
    automatic = primal_autograd(inputs, weights, learner)
    assert gap(explicit.output, automatic.output) < EXACT
    for ours, theirs in zip(explicit.weights, automatic.weights, strict=True):
        assert gap(ours, theirs) < EXACT


def test_one_token_by_hand() -> None:
    """f = 2, one token, no LN, no residual: W_1 = W - tok lr k^T (k W - v), read at q."""
    inputs = inner_inputs(1, 1, batch=1, heads=1, width=2)
    w, b = initial_weights("linear", heads=1, width=2)
    q, k, v = (x[0, 0, 0] for x in inputs[:3])
    error = k @ w[0] + b[0, 0] - v
    step = inputs.tok[0] * inputs.lr[0, 0, 0]
    expected = q @ (w[0] - step * torch.outer(k, error)) + b[0, 0] - step * error
    actual = primal_linear(inputs, expanded((w, b), 1), Learner(norm=False, residual=False)).output
    assert gap(actual.flatten(), expected) < 1e-14


def test_weights_wait_for_a_full_mini_batch() -> None:
    weights = expanded(initial_weights("linear"), 2)
    inputs = inner_inputs(7, 4)
    after_four = primal_linear(inputs.each(lambda x: x[:, :, :4]), weights).weights
    after_seven = primal_linear(inputs, weights).weights
    assert gap(after_four[0], weights[0]) > 1e-3
    assert gap(after_four[0], after_seven[0]) == 0


def test_gelu_and_its_derivatives() -> None:
    x = torch.linspace(-9, 9, 301, dtype=torch.float64, requires_grad=True)
    expected = F.gelu(x, approximate="tanh")
    (slope,) = torch.autograd.grad(expected.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    y, s = gelu(x)
    assert gap(y, expected) < 1e-14
    assert gap(gelu_slope(x, s), slope) < 1e-13
    assert gap(gelu_derivatives(x, s)[0], slope) < 1e-13
    assert gap(reference_slope(x), slope) < 1e-13
    assert gap(gelu_derivatives(x, s)[1], curvature) < 1e-12


def test_inner_norm_uses_the_official_epsilon() -> None:
    """With a standard deviation near sqrt(1e-6) the epsilon decides the value; 1e-5 would be off by two thirds."""
    z = 1e-3 * torch.randn(5, 8, dtype=torch.float64, generator=generator(0))
    ones, zeros = torch.ones(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    centred = z - z.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert gap(Learner().normalised(z, ones, zeros), expected) < 1e-12


def test_row_sums_of_the_weights_are_conserved() -> None:
    """LN makes every gradient sum to zero over features, so W loses nothing along the all-ones direction."""
    weights = expanded(initial_weights("linear"), 2)
    after = primal_linear(inner_inputs(16, 4), weights).weights
    assert gap(after[0].sum(-1), weights[0].sum(-1)) < 1e-13
    assert gap(after[0], weights[0]) > 1e-2
