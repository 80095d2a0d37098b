"""TTT-MLP's operators in torch, and the calls that `ops.py` makes of them; as `test_operators_emulation.py`."""

import types

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.kernels.cases_mlp import OUT, STATE, Case, case
from ttt_impl.kernels import emulation, fused_cuda
from ttt_impl.kernels.bounds import error
from ttt_impl.kernels.operators_mlp import backward_kernel, mlp_backward, mlp_decode, mlp_forward
from ttt_impl.layout import Layout, continued, packed, plain
from ttt_impl.learner import PUBLISHED, Inputs, Weights
from ttt_impl.ops import ttt_mlp
from ttt_impl.state import FastWeights

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
CPU = torch.device("cpu")
OPEN = 2e-2
"""Relative error allowed to the gradients of an open mini-batch, rounded to bf16 on their way."""


@pytest.mark.parametrize("save", [False, True])
def test_the_forward_operator_keeps_its_promises(save: bool) -> None:
    torch.library.opcheck(mlp_forward, (*case(21), None, None, None, 0, save), test_utils=CHECKS)


def test_the_differentiated_operator_keeps_its_promises() -> None:
    x = [t.requires_grad_() for t in case(17)]
    checks = (*CHECKS, "test_aot_dispatch_static")
    torch.library.opcheck(mlp_forward, (*x, None, None, None, 0, True), test_utils=checks)


def test_the_backward_operator_keeps_its_promises() -> None:
    x = case(21)
    out, end1, end2, _, _, _, *saved = mlp_forward(*x, None, None, None, 0, True)
    torch.library.opcheck(mlp_backward, (out, end1, None, *x[:7], end1, end2, *saved, None), test_utils=CHECKS)


def test_the_decoding_operator_keeps_its_promises() -> None:
    x = case(3, heads=2)
    _, *state = mlp_forward(*x, None, None, None, 0, False)[:6]
    x2, count = torch.zeros(2, 16, 257), torch.full((2,), 3, dtype=torch.int32)
    torch.library.opcheck(mlp_decode, (*x[:7], *state, x2, count, None), test_utils=CHECKS)


def test_compiles_into_one_graph() -> None:
    def loss(*x: Tensor) -> Tensor:
        out, end1, *_ = mlp_forward(*x, None, None, None, 0, True)
        return 2 * out.float().square().sum() + end1.sum()

    eager, compiled = (Case(*(t.clone().requires_grad_() for t in case(21))) for _ in range(2))
    loss(*eager).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*compiled).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(eager, compiled, strict=True))


def test_refuses_what_no_kernel_reads() -> None:
    x = case(5)
    with pytest.raises(ValueError, match="head dimension 96; valid choices: 64"):
        mlp_forward(torch.zeros(1, 5, 1, 96), *x[1:], None, None, None, 0, False)
    with pytest.raises(ValueError, match=r"start2 has dtype torch.float64; valid choices: torch.float32"):
        mlp_forward(*x[:8], x.start2.double(), None, None, None, 0, False)


def test_a_forward_that_saved_nothing_cannot_be_differentiated() -> None:
    x = [t.requires_grad_() for t in case(17)]
    out = mlp_forward(*x, None, None, None, 0, False)[0]
    with pytest.raises(RuntimeError, match="save=True"):
        out.float().sum().backward()


@pytest.mark.parametrize(("most", "name"), [(232448, "ttt_mlp_bwd"), (101376, "ttt_mlp_bwd_small")])
def test_the_backward_kernel_fits_the_device(most: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = types.SimpleNamespace(shared_memory_per_block_optin=most)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    assert backward_kernel(torch.device("cuda", 0)) == name


# ---- through `fused_cuda`, against the plain paths of `ops.py`


def inner(x: Case) -> tuple[Inputs, Weights]:
    """A case of one W0 for all sequences, as `ops.py` reads it."""
    heads = x.q.shape[2]
    q, k, v = (t.transpose(1, 2) for t in x[:3])
    layers = [w[:heads] for w in x[7:]]
    return Inputs(q, k, v, *x[3:7]), tuple(part for w in layers for part in (w[:, :-1], w[:, -1:]))


def both(
    inputs: Inputs, weights: Weights, layout: Layout, state: FastWeights | None = None, keep: bool = True
) -> tuple[Tensor, FastWeights | None]:
    """Run the kernels; hold output and state to the float32 scan's."""
    given = state and state.each(torch.clone)
    assert fused_cuda.misfit("mlp", inputs, PUBLISHED, layout, state, keep, 0, False) is None
    out, after = fused_cuda.run("mlp", inputs, weights, layout, state, keep, False)
    result = ttt_mlp(inputs.each(Tensor.float), weights, layout=layout, state=given, keep_state=keep, path="scan")
    assert error(out, result.output) < OUT
    if after is not None and result.state is not None:
        for mine, other in zip(after.weights, result.state.weights, strict=True):
            assert error(mine, other) < STATE
        taken = result.state.gradients[-1].any(2, keepdim=True)
        for mine, other in zip(after.rows, result.state.rows, strict=True):
            assert ((mine - other) * taken).norm() <= OPEN * (other * taken).norm()
        assert not any((g * ~taken).any() for g in after.gradients)
    return out, after


def test_a_conversation_changes_paths() -> None:
    """Prefill, single tokens, chunks inside and across mini-batches: always the state of the plain paths."""
    x, state, place = case(67, batch=2), None, 0
    for tokens in (21, 1, 1, 9, 5, 30):
        inputs, weights = inner(x.tokens(place, place + tokens))
        layout = continued(tokens, 16, [place] * 2, None, CPU)
        _, state = both(inputs, weights, layout, state)
        place += tokens


def test_padded_prompts_and_rows_at_different_places() -> None:
    x = case(25, batch=3)
    inputs, weights = inner(x)
    padding = torch.arange(25) < torch.tensor([[0], [20], [9]])
    first, _ = inner(x.tokens(0, 9))
    _, state = both(first, weights, continued(9, 16, [0] * 3, None, CPU))
    out, _ = both(inputs, weights, continued(25, 16, [9] * 3, padding, CPU), state)
    assert not out[1, :, :20].any()


def test_packed_documents() -> None:
    starts = torch.zeros(2, 50, dtype=torch.bool)
    starts[0, [0, 7, 23]] = starts[1, [0, 16]] = True
    inputs, weights = inner(case(50, batch=2))
    both(inputs, weights, packed(starts, 16), keep=False)


def test_gradients_reach_every_parameter_through_packed_documents() -> None:
    starts = torch.zeros(2, 40, dtype=torch.bool)
    starts[0, [0, 7]] = starts[1, 0] = True
    inputs, weights = inner(case(40, batch=2))
    layout, g = packed(starts, 16), torch.randn(2, 1, 40, 64)
    mine = [t.detach().requires_grad_() for t in (*inputs, *weights)]
    out, _ = fused_cuda.run("mlp", Inputs(*mine[:7]), tuple(mine[7:]), layout, None, False, True)
    exact = [t.detach().double().requires_grad_() for t in (*inputs, *weights)]
    reference = ttt_mlp(Inputs(*exact[:7]), tuple(exact[7:]), layout=layout, path="scan").output
    for name, a, b in zip((*Inputs._fields, "W1", "b1", "W2", "b2"), torch.autograd.grad(out, mine, g.bfloat16()),
                          torch.autograd.grad(reference, exact, g.bfloat16().double()), strict=True):  # fmt: skip
        assert error(a, b) < (2e-2 if name == "tok" else 1e-2), name


def test_a_differentiated_call_needs_the_kernels_of_both_passes() -> None:
    layout = plain(20, 16, CPU)
    assert fused_cuda.needed("mlp", torch.zeros(1, 1, 20, 64), layout, None, True) == ["ttt_mlp_fwd", "ttt_mlp_bwd"]
