"""Dual form and hand-written backward against the primal form: outputs, weights and every gradient, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ttt_impl.helpers import EXACT, GRADIENT, LEARNERS, expanded, gap, generator, initial_weights, inner_inputs
from tests.ttt_impl.test_reference import ABLATIONS, PRIMAL
from ttt_impl import ttt_linear, ttt_mlp
from ttt_impl.learner import PUBLISHED, Inputs, Learner, Weights
from ttt_impl.ops import TTTResult
from ttt_impl.state import unfold

ENTRY = {"linear": ttt_linear, "mlp": ttt_mlp}


def weights_after(result: TTTResult, batch: int, learner: Learner) -> Weights:
    assert result.state is not None
    return unfold(result.state.weights, batch, learner.bias)


def compare(kind: str, inputs: Inputs, learner: Learner = PUBLISHED, path: str = "auto", group: int = 0) -> None:
    batch, heads, _, width = inputs.q.shape
    weights = initial_weights(kind, heads, width, learner=learner)
    expected = PRIMAL[kind](inputs, expanded(weights, batch), learner)
    result = ENTRY[kind](inputs, weights, learner=learner, path=path, keep_state=True, group=group)
    assert gap(result.output, expected.output) < EXACT
    for ours, theirs in zip(weights_after(result, batch, learner), expected.weights, strict=True):
        assert gap(ours, theirs) < EXACT


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("size", [1, 8, 16, 64])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 100])
def test_dual_is_primal(kind: str, size: int, length: int) -> None:
    inputs = inner_inputs(length, size, batch=1, heads=2)
    compare(kind, inputs, path="scan")
    compare(kind, inputs, path="autograd")


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("width", [64, 96])
def test_published_head_widths(kind: str, width: int) -> None:
    compare(kind, inner_inputs(33, 16, batch=1, heads=1, width=width))


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("learner", ABLATIONS, ids=str)
def test_ablated_learners(kind: str, learner: Learner) -> None:
    inputs = inner_inputs(13, 4, scale=4.0 if learner.norm else 0.5)
    compare(kind, inputs, learner, "scan")
    compare(kind, inputs, learner, "autograd")


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(LEARNERS), st.integers(1, 40), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from([4, 6, 8, 10]), st.integers(0, 2**20),
)  # fmt: skip
def test_any_shape(kind: str, length: int, size: int, batch: int, heads: int, width: int, seed: int) -> None:
    compare(kind, inner_inputs(length, size, batch, heads, width, seed, scale=1.0))


def loss_of(output: Tensor, weights: Weights) -> Tensor:
    """A scalar that weighs every output and every final weight differently."""
    g = generator(7)
    return sum((x * torch.randn(x.shape, dtype=x.dtype, generator=g)).sum() for x in (output, *weights))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("learner", [PUBLISHED, Learner(norm=False), Learner(residual=False, bias=False)], ids=str)
@pytest.mark.parametrize(("length", "group"), [(17, 0), (22, 2), (3, 0)])
def test_gradients_of_every_input(kind: str, learner: Learner, length: int, group: int) -> None:
    """Reverse mode through the hand-written scan equals autograd through the token-by-token primal."""
    inputs = inner_inputs(length, 4, scale=2.0 if learner.norm else 0.3)
    weights = initial_weights(kind, learner=learner)
    leaves = [x.requires_grad_() for x in (*inputs, *weights)]
    inputs, weights = Inputs(*leaves[:7]), tuple(leaves[7:])
    primal = PRIMAL[kind](inputs, expanded(weights, 2), learner)
    expected = torch.autograd.grad(loss_of(primal.output, ()), leaves, allow_unused=True)
    unused = (() if learner.norm else ("gamma", "beta")) + (() if learner.bias else ("b1", "b2"))
    for path in ("scan", "autograd"):
        result = ENTRY[kind](inputs, weights, learner=learner, path=path, group=group)
        actual = torch.autograd.grad(loss_of(result.output, ()), leaves, allow_unused=True)
        for name, a, e in zip((*Inputs._fields, "W1", "b1", "W2", "b2"), actual, expected, strict=False):
            if name in unused:
                assert a is None, name
            else:
                assert a is not None, name
                assert e is not None, name
                assert gap(a, e) < GRADIENT, name


@pytest.mark.parametrize("kind", LEARNERS)
def test_gradcheck(kind: str) -> None:
    """Against finite differences, which share nothing with any formula here."""
    inputs = inner_inputs(5, 2, batch=1, heads=1, width=4, scale=1.0)
    leaves = [x.requires_grad_() for x in (*inputs, *initial_weights(kind, 1, 4))]

    def run(*x: Tensor) -> Tensor:
        return ENTRY[kind](Inputs(*x[:7]), x[7:], path="scan").output

    assert torch.autograd.gradcheck(run, leaves, eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("kind", LEARNERS)
def test_autograd_path_can_be_differentiated_twice(kind: str) -> None:
    inputs = inner_inputs(4, 2, batch=1, heads=1, width=2, scale=1.0)
    leaves = [x.requires_grad_() for x in (*inputs, *initial_weights(kind, 1, 2))]

    def run(*x: Tensor) -> Tensor:
        return ENTRY[kind](Inputs(*x[:7]), x[7:], path="autograd").output

    assert torch.autograd.gradgradcheck(run, leaves, eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("kind", LEARNERS)
def test_rate_zero_teaches_nothing(kind: str) -> None:
    inputs = inner_inputs(12, 4)._replace(lr=torch.zeros(2, 3, 12, dtype=torch.float64))
    weights = initial_weights(kind)
    result = ENTRY[kind](inputs, weights, keep_state=True)
    for ours, theirs in zip(weights_after(result, 2, PUBLISHED), expanded(weights, 2), strict=True):
        assert gap(ours, theirs) == 0


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_future_is_not_read(kind: str) -> None:
    """Changing token 9 changes output 9 and nothing before it, inside its mini-batch and across."""
    inputs, weights = inner_inputs(16, 4), initial_weights(kind)
    before = ENTRY[kind](inputs, weights).output

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, 9] *= -1.5
        return x

    after = ENTRY[kind](inputs.each(change), weights).output
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert all(gap(before[:, :, t], after[:, :, t]) > 1e-6 for t in range(9, 16))


@pytest.mark.parametrize("kind", LEARNERS)
def test_half_precision_keeps_its_state_in_float32(kind: str) -> None:
    inputs, weights = inner_inputs(70, 16, width=16), initial_weights(kind, width=16)
    exact = ENTRY[kind](inputs, weights).output
    half = Inputs(*(x.bfloat16() for x in inputs))
    result = ENTRY[kind](half, tuple(w.bfloat16() for w in weights), keep_state=True)
    assert result.output.dtype == torch.bfloat16
    assert result.state is not None
    assert all(w.dtype == torch.float32 for w in result.state.weights)
    rounded = ENTRY[kind](Inputs(*(x.double() for x in half)), tuple(w.bfloat16().double() for w in weights)).output
    assert ((result.output.double() - rounded).norm() / rounded.norm()).item() < 3e-3
    assert ((exact - rounded).norm() / exact.norm()).item() > 1e-3


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("group", [0, 2])
def test_autocast_does_not_reach_the_inner_loop(kind: str, group: int) -> None:
    """Forward is the same to the bit, and backward too; run under autocast as well, only what surrounds the scan is."""
    results = []
    for forward, backward in ((False, False), (True, False), (True, True)):
        leaves = [x.float().requires_grad_() for x in (*inner_inputs(20, 4), *initial_weights(kind))]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=forward):
            output = ENTRY[kind](Inputs(*leaves[:7]), tuple(leaves[7:]), group=group).output
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backward):
            output.square().sum().backward()
        results.append([output, *(x.grad for x in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results[:2], strict=True))
    assert all((a - b).norm() < 1e-2 * a.norm() for a, b in zip(*results[1:], strict=True))


def test_entry_names_its_path() -> None:
    inputs, weights = inner_inputs(4, 4), initial_weights("linear")
    assert ttt_linear(inputs, weights).path == "scan"
    assert ttt_linear(inputs, weights, path="autograd").path == "autograd"
    with pytest.raises(ValueError, match=r"path='fused'; valid choices: 'auto', 'scan', 'autograd', 'step'"):
        ttt_linear(inputs, weights, path="fused")
    with pytest.raises(ValueError, match=r"path='step' needs a state"):
        ttt_linear(inputs, weights, path="step")
    with pytest.raises(ValueError, match=r"path='fused-cuda' cannot be taken: tokens are torch.float64; valid"):
        ttt_linear(inputs, weights, path="fused-cuda")
