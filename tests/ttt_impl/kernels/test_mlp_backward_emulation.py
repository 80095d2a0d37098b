"""TTT-MLP's backward kernel, run by the emulator, against autograd through the primal form in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.kernels.cases import error
from tests.ttt_impl.kernels.cases_mlp import Case, Result, case, forward, primal
from tests.ttt_impl.kernels.rounded import dual_mlp
from ttt_impl.kernels import emulation, operators, operators_mlp
from ttt_impl.kernels.operators_mlp import mlp_backward
from ttt_impl.learner import Weights

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
GRADIENT = 1e-2
PRICE = 2.5
"""The gradient of tok is sixteen long sums of both signs: held to this multiple of what bf16 operands cost."""


class Upstream:
    """Gradients of output and final state, the latter large enough that neither hides the other."""

    def __init__(self, x: Case) -> None:
        g = torch.Generator().manual_seed(7)
        self.out = torch.randn(x.q.shape, generator=g).bfloat16()
        self.end1, self.end2 = (4 * torch.randn(w.shape, generator=g) for w in x[7:])

    def tokens(self, first: int, last: int) -> "Upstream":
        """The same state read after some of the tokens."""
        part = object.__new__(Upstream)
        part.out, part.end1, part.end2 = self.out[:, first:last].contiguous(), self.end1, self.end2
        return part


def backward(x: Case, d: Upstream, result: Result | None = None) -> Case:
    """Gradients by the kernels."""
    r = result or forward(x, save=True)
    return Case(*mlp_backward(d.out, d.end1, d.end2, *x[:7], *r[1:3], *r[6:], None))


Form = Callable[[Case], tuple[Tensor, Weights]]


def reference(x: Case, d: Upstream, form: Form = primal) -> Case:
    """Gradients by autograd in float64."""
    x = Case(*(t.double().requires_grad_() for t in x))
    out, ends = form(x)
    return Case(*torch.autograd.grad([out, *ends], list(x), [t.double() for t in (d.out, d.end1, d.end2)]))


def exact_dual(x: Case) -> tuple[Tensor, Weights]:
    """The dual form without rounding: a quick stand-in for the primal form where a sequence is long."""
    return dual_mlp(x, torch.matmul)


def added(g: Case, d: Upstream) -> dict[str, Tensor]:
    """What is compared: the gradients, and what the tokens added to those of the state."""
    change = {"added 1": g.start1.double() - d.end1, "added 2": g.start2.double() - d.end2}
    return dict(zip(Case._fields, g, strict=True)) | change


def errors(x: Case, d: Upstream, mine: Case, form: Form = primal) -> dict[str, float]:
    """Relative errors over their bounds. A single token's dlr and dtok are single numbers and not asked."""
    exact = reference(x, d, form)
    a, b = added(mine, d), added(exact, d)
    result = {name: error(a[name], b[name]) / GRADIENT for name in a}
    price = error(reference(x, d, dual_mlp).tok, exact.tok)
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
    worst = errors(x, d, backward(x, d), primal if length < 512 else exact_dual)
    assert max(worst.values()) < 1, worst


@pytest.mark.parametrize("change", [{"rate": 4.0}, {"scale": 3.0}, {"scale": 0.005}])
def test_corners_match_autograd(change: dict[str, float]) -> None:
    x = case(32, **change)
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


def test_gradients_of_the_weights_may_lie_in_either_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x = case(37, heads=2)
    d, result = Upstream(x), forward(x, save=True)
    shared = backward(x, d, result)
    monkeypatch.setattr(operators_mlp, "backward_kernel", lambda device: "ttt_mlp_bwd_small")
    assert all(map(torch.equal, backward(x, d, result), shared))


def test_no_gradient_of_the_state_is_a_gradient_of_zero() -> None:
    x = case(40)
    d, none, result = Upstream(x), Upstream(x), forward(x, save=True)
    for first, second in (("end1", "end2"), ("end2", "end1")):
        setattr(d, first, torch.zeros_like(getattr(d, first)))
        setattr(none, first, None)
        assert all(map(torch.equal, backward(x, d, result), backward(x, none, result))), second


def test_checkpoints_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a checkpoint nothing depends on the final state any more, only on the checkpoint."""
    monkeypatch.setattr(operators, "EVERY", 2)
    x = case(96)
    d, result = Upstream(x), forward(x, save=True)
    right = backward(x, d, result)
    other_end = backward(x, d, result._replace(end1=2 * result.end1, end2=2 * result.end2))
    other_checkpoint = backward(x, d, result._replace(checkpoints=2 * result.checkpoints))
    assert error(other_end.q[:, 80:], right.q[:, 80:].double()) > 0.1
    assert error(other_end.q[:, :80], right.q[:, :80].double()) < 0.05
    assert error(other_checkpoint.q[:, :80], right.q[:, :80].double()) > 0.1


def test_a_split_sequence_has_the_same_gradients() -> None:
    x = case(53, heads=2)
    d, border = Upstream(x), 32
    whole, early = backward(x, d), forward(x.tokens(0, border), save=True)
    rest = x.tokens(border)._replace(start1=early.end1, start2=early.end2)
    last = backward(rest, d.tokens(border, 53))
    before = d.tokens(0, border)
    before.end1, before.end2 = last.start1, last.start2
    first = backward(x.tokens(0, border), before, early)
    for name in ("q", "k", "v"):
        assert error(torch.cat([getattr(first, name), getattr(last, name)], 1), getattr(whole, name).double()) < 1e-3
    assert error(first.start1, whole.start1.double()) < 1e-4
    assert error(first.start2, whole.start2.double()) < 1e-4
    assert error(first.tok + last.tok, whole.tok.double()) < 1e-4


def test_packed_documents_have_gradients_of_their_own() -> None:
    x = case(60, heads=2)
    d = Upstream(x)
    table = torch.tensor([[0, 0, 20, 0, 0], [0, 21, 39, 0, 2]], dtype=torch.int32)
    both = x._replace(start1=x.start1.repeat(2, 1, 1), start2=x.start2.repeat(2, 1, 1))
    r = forward(both, segments=table, mini_batches=5, save=True)
    d_ends = d.end1.repeat(2, 1, 1), d.end2.repeat(2, 1, 1)
    packed = Case(*mlp_backward(d.out, *d_ends, *both[:7], *r[1:3], *r[6:], table))
    total = torch.zeros(16)
    for s, (first, last) in enumerate([(0, 20), (21, 60)]):
        alone = backward(x.tokens(first, last), d.tokens(first, last))
        assert torch.equal(packed.k[:, first:last], alone.k)
        assert torch.equal(packed.lr[:, :, first:last], alone.lr)
        assert torch.equal(packed.start1[2 * s : 2 * s + 2], alone.start1)
        assert torch.equal(packed.start2[2 * s : 2 * s + 2], alone.start2)
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
