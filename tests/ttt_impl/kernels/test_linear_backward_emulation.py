"""TTT-Linear's backward kernel, run by the emulator, against autograd through the primal form in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.kernels.cases import Case, Result, case, error, forward, primal
from tests.ttt_impl.kernels.rounded import dual
from ttt_impl.kernels import emulation, operators
from ttt_impl.kernels.operators import linear_backward

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
GRADIENT = 1e-2
PRICE = 2.5
"""The gradient of tok is sixteen long sums of both signs: held to this multiple of what bf16 operands cost."""


class Upstream:
    """Gradients of output and final state; the latter large, or what the tokens add to it hides how it is used."""

    def __init__(self, x: Case) -> None:
        g = torch.Generator().manual_seed(7)
        self.out = torch.randn(x.q.shape, generator=g).bfloat16()
        self.end = 20 * torch.randn(x.start.shape, generator=g)


def backward(x: Case, d: Upstream, result: Result | None = None) -> Case:
    """Gradients by the kernels."""
    r = result or forward(x, save=True)
    return Case(*linear_backward(d.out, d.end, *x[:7], r.end, r.updates, r.checkpoints, None))


Form = Callable[[Case], tuple[Tensor, Tensor]]


def reference(x: Case, d: Upstream, form: Form = primal) -> Case:
    """Gradients by autograd in float64."""
    x = Case(*(t.double().requires_grad_() for t in x))
    out, end = form(x)
    return Case(*torch.autograd.grad([out, end], list(x), [d.out.double(), d.end.double()]))


def exact_dual(x: Case) -> tuple[Tensor, Tensor]:
    """The dual form without rounding: a quick stand-in for the primal form where a sequence is long."""
    return dual(x, torch.matmul)


def errors(x: Case, d: Upstream, mine: Case, form: Form = primal) -> dict[str, float]:
    """Relative errors over their bounds. A single token's dlr and dtok are single numbers and not asked."""
    exact = reference(x, d, form)
    result = {name: error(a, b) / GRADIENT for name, a, b in zip(Case._fields, mine, exact, strict=True)}
    price = error(reference(x, d, dual).tok, exact.tok)
    result["tok"] *= GRADIENT / max(PRICE * price, GRADIENT)
    if x.q.shape[1] == 1:
        del result["lr"], result["tok"]
    return result


@pytest.mark.parametrize(
    ("length", "batch", "every"), [(1, 1, 64), (15, 1, 64), (16, 1, 64), (53, 2, 2), (80, 1, 2), (512, 1, 8)]
)
def test_matches_autograd_of_the_primal_form(
    length: int, batch: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "EVERY", every)
    x = case(length, batch=batch, heads=batch, seed=length)
    d = Upstream(x)
    worst = errors(x, d, backward(x, d))
    assert max(worst.values()) < 1, worst


@pytest.mark.parametrize("width", [96, 128])
def test_wider_heads_match_autograd(width: int) -> None:
    x = case(48, width=width)
    d = Upstream(x)
    worst = errors(x, d, backward(x, d))
    assert max(worst.values()) < 1, worst


def test_long_sequences_without_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoing 128 updates drifts far less than bf16 operands round."""
    monkeypatch.setattr(operators, "EVERY", 1000)
    x = case(2048)
    d = Upstream(x)
    worst = errors(x, d, backward(x, d), exact_dual)
    assert max(worst.values()) < 1, worst


def test_the_dual_form_is_the_primal_form() -> None:
    x = case(53, heads=2)
    d = Upstream(x)
    for a, b in zip(reference(x, d, exact_dual), reference(x, d), strict=True):
        assert error(a, b) < 1e-12


@pytest.mark.parametrize("change", [{"rate": 4.0}, {"scale": 0.3}, {"scale": 1e-4}])
def test_corners_match_autograd(change: dict[str, float]) -> None:
    x = case(32, **change)
    d = Upstream(x)
    worst = errors(x, d, backward(x, d))
    assert max(worst.values()) < 1, worst


def test_no_gradient_of_the_state_is_a_gradient_of_zero() -> None:
    x = case(40, heads=2)
    d, none = Upstream(x), Upstream(x)
    d.end, none.end = torch.zeros_like(d.end), None  # type: ignore[assignment]
    assert all(map(torch.equal, backward(x, d), backward(x, none)))


def test_checkpoints_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a checkpoint nothing depends on the final state any more, only on the checkpoint."""
    monkeypatch.setattr(operators, "EVERY", 2)
    x = case(96)
    d, result = Upstream(x), forward(x, save=True)
    right = backward(x, d, result)
    other_end = backward(x, d, result._replace(end=2 * result.end))
    other_checkpoint = backward(x, d, result._replace(checkpoints=2 * result.checkpoints))
    assert error(other_end.q[:, 80:], right.q[:, 80:].double()) > 0.1
    assert error(other_end.q[:, :80], right.q[:, :80].double()) < 0.05
    assert error(other_checkpoint.q[:, :80], right.q[:, :80].double()) > 0.1


def test_a_split_sequence_has_the_same_gradients() -> None:
    x = case(53, heads=2)
    d = Upstream(x)
    whole, border = backward(x, d), 32
    parts = [x.tokens(0, border), x.tokens(border)._replace(start=forward(x.tokens(0, border)).end)]
    late, early = Upstream(x), Upstream(x)
    late.out, early.out = d.out[:, border:].contiguous(), d.out[:, :border].contiguous()
    last = backward(parts[1], late)
    early.end = last.start
    first = backward(parts[0], early)
    for name in ("q", "k", "v"):
        assert error(torch.cat([getattr(first, name), getattr(last, name)], 1), getattr(whole, name).double()) < 1e-3
    assert error(first.start, whole.start.double()) < 1e-4
    assert error(first.tok + last.tok, whole.tok.double()) < 1e-4


def test_packed_documents_have_gradients_of_their_own() -> None:
    x = case(60, heads=2)
    d = Upstream(x)
    table = torch.tensor([[0, 0, 20, 0, 0], [0, 21, 39, 0, 2]], dtype=torch.int32)
    both = x._replace(start=x.start.repeat(2, 1, 1))
    r = forward(both, segments=table, mini_batches=5, save=True)
    d_end = d.end.repeat(2, 1, 1)
    packed = Case(*linear_backward(d.out, d_end, *both[:7], r.end, r.updates, r.checkpoints, table))
    total = torch.zeros(16)
    for s, (first, last) in enumerate([(0, 20), (21, 60)]):
        part = Upstream(x)
        part.out = d.out[:, first:last].contiguous()
        alone = backward(x.tokens(first, last), part)
        assert torch.equal(packed.k[:, first:last], alone.k)
        assert torch.equal(packed.lr[:, :, first:last], alone.lr)
        assert torch.equal(packed.start[2 * s : 2 * s + 2], alone.start)
        total += alone.tok
    assert error(packed.tok, total.double()) < 1e-5
    assert not packed.q[:, 20].any()


def test_the_past_has_no_influence_on_later_gradients() -> None:
    x = case(53)
    d = Upstream(x)
    whole = backward(x, d)
    d.out = d.out.clone()
    d.out[:, :20] = 0
    assert torch.equal(backward(x, d).v[:, 32:], whole.v[:, 32:])
