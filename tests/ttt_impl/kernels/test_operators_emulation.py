"""The operators in torch: schemas, fake kernels, autograd, torch.compile; and the calls that `ops.py` makes of them."""

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.kernels.cases import Case, case, error
from ttt_impl.kernels import emulation, fused_cuda, operators
from ttt_impl.kernels.operators import linear_backward, linear_decode, linear_forward
from ttt_impl.layout import Layout, continued, counted, packed, plain
from ttt_impl.learner import PUBLISHED, Inputs, Learner, Weights
from ttt_impl.ops import ttt_linear
from ttt_impl.state import FastWeights

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("save", [False, True])
def test_the_forward_operator_keeps_its_promises(save: bool) -> None:
    torch.library.opcheck(linear_forward, (*case(21, heads=2), None, None, None, 0, save), test_utils=CHECKS)


def test_the_differentiated_operator_keeps_its_promises() -> None:
    x = [t.requires_grad_() for t in case(17)]
    torch.library.opcheck(
        linear_forward, (*x, None, None, None, 0, True), test_utils=(*CHECKS, "test_aot_dispatch_static")
    )


def test_the_backward_operator_keeps_its_promises() -> None:
    x = case(21, heads=2)
    out, end, _, _, updates, checkpoints = linear_forward(*x, None, None, None, 0, True)
    torch.library.opcheck(linear_backward, (out, end, *x[:7], end, updates, checkpoints, None), test_utils=CHECKS)


def test_the_decoding_operator_keeps_its_promises() -> None:
    x = case(3, heads=2)
    _, end, keys, ghat, _, _ = linear_forward(*x, None, None, None, 0, False)
    count = torch.full((2,), 3, dtype=torch.int32)
    torch.library.opcheck(linear_decode, (*x[:7], end, keys, ghat, count, None), test_utils=CHECKS)


def test_compiles_into_one_graph() -> None:
    def loss(*x: Tensor) -> Tensor:
        out, end, *_ = linear_forward(*x, None, None, None, 0, True)
        return 2 * out.float().square().sum() + end.sum()

    eager, compiled = (Case(*(t.clone().requires_grad_() for t in case(21))) for _ in range(2))
    loss(*eager).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*compiled).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(eager, compiled, strict=True))


def test_the_path_of_ops_compiles_into_one_graph() -> None:
    inputs, weights = inner(case(37, batch=2, heads=2))

    def call(*x: Tensor) -> Tensor:
        layout = plain(37, 16, x[0].device)
        return fused_cuda.run("linear", Inputs(*x[:7]), x[7:], layout, None, False, True)[0]

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs, *weights), call(*inputs, *weights))


def test_inputs_may_have_any_strides() -> None:
    x = case(21, heads=2)
    odd = torch.empty(21 * 2 * 64 + 1, dtype=torch.bfloat16)[1:].view(1, 21, 2, 64).copy_(x.q)
    turned = x._replace(q=odd, k=x.k.transpose(1, 2).contiguous().transpose(1, 2))
    for a, b in zip(
        linear_forward(*turned, None, None, None, 0, True), linear_forward(*x, None, None, None, 0, True), strict=True
    ):
        assert a.dtype == torch.int32 or torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(1, 5, 1, 64)}, "q has dtype torch.float32; valid choices: torch.bfloat16"),
        ({"lr": torch.zeros(1, 1, 5).double()}, "lr has dtype torch.float64; valid choices: torch.float32"),
        ({"q": torch.zeros(1, 5, 1, 48)}, "head dimension 48; valid choices: 64, 96, 128"),
        ({"tok": torch.zeros(8)}, "mini-batch of 8 tokens; valid choices: 16"),
    ],
)
def test_refuses_what_no_kernel_reads(change: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        linear_forward(*case(5)._replace(**change), None, None, None, 0, False)


def test_a_forward_that_saved_nothing_cannot_be_differentiated() -> None:
    x = [t.requires_grad_() for t in case(17)]
    out = linear_forward(*x, None, None, None, 0, False)[0]
    with pytest.raises(RuntimeError, match="save=True"):
        out.float().sum().backward()


# ---- through `fused_cuda`, against the plain paths of `ops.py`


def inner(x: Case) -> tuple[Inputs, Weights]:
    """A case of one W0 for all sequences, as `ops.py` reads it."""
    heads, width = x.q.shape[2:]
    start = x.start[:heads]
    q, k, v = (t.transpose(1, 2) for t in x[:3])
    return Inputs(q, k, v, *x[3:7]), (start[:, :width], start[:, width:])


def both(
    inputs: Inputs, weights: Weights, layout: Layout, state: FastWeights | None = None, keep: bool = True
) -> tuple[Tensor, FastWeights | None]:
    """Run the kernels; hold output and state to the float32 scan's."""
    given = state and state.each(torch.clone)
    assert fused_cuda.misfit("linear", inputs, PUBLISHED, layout, state, keep, 0, False) is None
    out, after = fused_cuda.run("linear", inputs, weights, layout, state, keep, False)
    plainly = inputs.each(lambda t: t.float())
    result = ttt_linear(plainly, weights, layout=layout, state=given, keep_state=keep, path="scan")
    assert error(out, result.output.double()) < 5e-3
    if after is not None and result.state is not None:
        (keys, ghat), (scan_keys, scan_ghat) = after.rows, result.state.rows
        assert error(after.weights[0], result.state.weights[0].double()) < 3e-3
        assert (keys * ghat.any(2, keepdim=True) - scan_keys * scan_ghat.any(2, keepdim=True)).abs().max() < 1e-6
        assert (ghat - scan_ghat).norm() <= 1e-2 * scan_ghat.norm()
    return out, after


def test_a_conversation_changes_paths() -> None:
    """Prefill, single tokens, chunks inside and across mini-batches: always the state of the plain paths."""
    x, state, place = case(90, batch=2, heads=2), None, 0
    for tokens in (37, 1, 1, 9, 5, 30, 7):
        inputs, weights = inner(x.tokens(place, place + tokens))
        layout = continued(tokens, 16, [place] * 2, None, torch.device("cpu"))
        _, state = both(inputs, weights, layout, state)
        place += tokens


def test_padded_prompts_and_rows_at_different_places() -> None:
    x = case(25, batch=3, heads=2)
    inputs, weights = inner(x)
    padding = torch.arange(25) < torch.tensor([[0], [20], [9]])
    first, _ = inner(x.tokens(0, 9))
    _, state = both(first, weights, continued(9, 16, [0] * 3, None, torch.device("cpu")))
    out, _ = both(inputs, weights, continued(25, 16, [9] * 3, padding, torch.device("cpu")), state)
    assert not out[1, :, :20].any()


def test_packed_documents() -> None:
    starts = torch.zeros(2, 50, dtype=torch.bool)
    starts[0, [0, 7, 23]] = starts[1, [0, 16]] = True
    inputs, weights = inner(case(50, batch=2, heads=2))
    both(inputs, weights, packed(starts, 16), keep=False)


def test_gradients_reach_every_parameter_through_packed_documents() -> None:
    starts = torch.zeros(2, 40, dtype=torch.bool)
    starts[0, [0, 7]] = starts[1, 0] = True
    inputs, weights = inner(case(40, batch=2, heads=2))
    layout, g = packed(starts, 16), torch.randn(2, 2, 40, 64)
    mine = [t.detach().requires_grad_() for t in (*inputs, *weights)]
    out, _ = fused_cuda.run("linear", Inputs(*mine[:7]), tuple(mine[7:]), layout, None, False, True)
    exact = [t.detach().double().requires_grad_() for t in (*inputs, *weights)]
    reference = ttt_linear(Inputs(*exact[:7]), tuple(exact[7:]), layout=layout, path="scan").output
    for name, a, b in zip((*Inputs._fields, "W", "b"), torch.autograd.grad(out, mine, g.bfloat16()),
                          torch.autograd.grad(reference, exact, g.bfloat16().double()), strict=True):  # fmt: skip
        assert error(a, b) < (2e-2 if name == "tok" else 1e-2), name


def test_what_does_not_fit_is_left_to_the_plain_paths() -> None:
    inputs, _ = inner(case(20))
    layout, state = plain(20, 16, torch.device("cpu")), None

    def misfit(kind: str = "linear", x: Inputs = inputs, learner: Learner = PUBLISHED, layout: Layout = layout,
               record: int = 0, differentiated: bool = False) -> str | None:  # fmt: skip
        return fused_cuda.misfit(kind, x, learner, layout, state, True, record, differentiated)

    assert misfit() is None
    assert misfit(differentiated=True) is None
    for words, found in (
        ("head dimension 32; valid choices: 64, 96, 128", misfit(x=inputs.each(lambda t: t[..., :32]))),
        ("head dimension 32; valid choices: 64", misfit("mlp", x=inputs.each(lambda t: t[..., :32]))),
        ("tokens are torch.float32; valid choices: torch.bfloat16", misfit(x=inputs.each(lambda t: t.float()))),
        ("leaves out LN, residual or bias", misfit(learner=Learner(bias=False))),
        ("mini-batches of 8 tokens; valid choices: 16", misfit(layout=plain(20, 8, torch.device("cpu")))),
        ("cache can be rewound", misfit(record=1)),
        ("already open", misfit(layout=continued(20, 16, [3], None, torch.device("cpu")), differentiated=True)),
        ("already open", misfit(layout=counted(16, torch.tensor([3])), differentiated=True)),
        ("packed documents with a state", misfit(layout=packed(torch.eye(20, dtype=torch.bool)[:1], 16))),
    ):
        assert found is not None
        assert words in found


def test_many_heads_take_the_wide_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(operators, "launch", lambda name, *_: names.append(name))
    for heads in (264, 265):
        linear_forward(*case(1, heads=heads), None, None, None, 0, False)
    linear_forward(*case(1, heads=265, width=96), None, None, None, 0, False)
    assert names == ["ttt_linear_fwd", "ttt_linear_fwd_wide", "ttt_linear_fwd"]
