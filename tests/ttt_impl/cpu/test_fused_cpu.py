"""The fused operators in float32 against the scans in float64: values, states, every gradient, every kind of row."""

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.helpers import LEARNERS, generator, initial_weights, inner_inputs
from tests.ttt_impl.test_dual import ENTRY
from tests.ttt_impl.test_splits import documents
from ttt_impl.cpu import build
from ttt_impl.cpu.fused_cpu import EVERY
from ttt_impl.layout import Layout, continued
from ttt_impl.learner import Inputs, Learner, Weights
from ttt_impl.ops import TTTResult

CLOSE = 1e-5
"""Relative, in the norm of a tensor."""
CPU = torch.device("cpu")
SHAPES = [(100, 16, 2, 3, 64), (33, 4, 2, 3, 8), (40, 20, 1, 2, 10), (9, 1, 1, 1, 4), (16 * EVERY + 40, 16, 1, 1, 16)]
"""Tokens, mini-batch, batch, heads, width: full vectors and none, one token a mini-batch, a checkpoint on the way."""
EACH = pytest.mark.parametrize("kind", LEARNERS)
Gradients = tuple[Tensor, ...]


def run(
    kind: str, inputs: Inputs, weights: Weights, dtype: torch.dtype, path: str, layout: Layout | None = None
) -> tuple[TTTResult, Gradients]:
    """Result and gradients of all inputs and weights, tokens strided as the layer strides them."""
    q, k, v = (x.transpose(1, 2).to(dtype).contiguous().transpose(1, 2) for x in inputs[:3])
    lr = inputs.lr.mT.to(dtype).contiguous().mT
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v, lr, *inputs[4:], *weights)]
    keep = layout is None or layout.age is None
    result = ENTRY[kind](Inputs(*leaves[:7]), tuple(leaves[7:]), layout=layout, path=path, keep_state=keep)
    probe = torch.randn(result.output.shape, dtype=torch.float64, generator=generator(5)).to(dtype)
    return result, torch.autograd.grad((result.output * probe).sum(), leaves)


def gap(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


def compare(kind: str, inputs: Inputs, weights: Weights, layout: Layout | None = None) -> None:
    expected, gradients = run(kind, inputs, weights, torch.float64, "scan", layout)
    actual, ours = run(kind, inputs, weights, torch.float32, "auto", layout)
    assert actual.path == "fused-cpu"
    assert gap(actual.output, expected.output) < CLOSE
    for name, a, b in zip((*Inputs._fields, "W1", "b1", "W2", "b2"), ours, gradients, strict=False):
        assert gap(a, b) < CLOSE, name
    if expected.state is not None and actual.state is not None:
        for a, b in zip(actual.state.weights, expected.state.weights, strict=True):
            assert gap(a, b) < CLOSE
        for a, b in zip(actual.state.gradients, expected.state.gradients, strict=True):
            assert (a - b).abs().max() < CLOSE


@EACH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_states_and_gradients(kind: str, shape: tuple[int, ...]) -> None:
    *_, heads, width = shape
    compare(kind, inner_inputs(*shape, scale=1.0), initial_weights(kind, heads, width))


@EACH
def test_packed_documents(kind: str) -> None:
    layout = documents([[5, 1, 8, 6], [4, 4, 11, 1]])
    compare(kind, inner_inputs(20, 4, heads=2, scale=1.0), initial_weights(kind, 2), layout)


@EACH
def test_padded_rows(kind: str) -> None:
    padding = torch.zeros(3, 21, dtype=torch.bool)
    padding[0, :7] = padding[2, :20] = True
    inputs, weights = inner_inputs(21, 4, batch=3, heads=2, scale=1.0), initial_weights(kind, 2)
    layout = continued(21, 4, [0, 0, 0], padding, CPU)
    compare(kind, inputs, weights, layout)
    output = run(kind, inputs, weights, torch.float32, "auto", layout)[0].output
    assert all(output[row, :, pad].eq(0).all() for row, pad in enumerate(padding))


@EACH
def test_any_split_in_ragged_rows(kind: str) -> None:
    """Two rows at different places of their mini-batches, read by chunks of any size, equal the rows read whole."""
    inputs, weights = inner_inputs(67, 16, heads=2, width=32, scale=1.0), initial_weights(kind, 2, 32)
    expected = ENTRY[kind](inputs, weights, path="scan").output
    inputs, weights = Inputs(*(x.float() for x in inputs)), tuple(w.float() for w in weights)
    first = inputs.each(lambda x: x[:, :, :5])
    padding = torch.tensor([[False] * 5, [True] * 3 + [False] * 2])
    shifted = first.each(lambda x: torch.stack([x[0], x[1].roll(3, 1)]))
    layout = continued(5, 16, [0, 0], padding, CPU)
    result = ENTRY[kind](shifted, weights, layout=layout, keep_state=True)
    state, position = result.state, [5, 2]
    for chunk in (1, 10, 1, 34, 16):

        def take(x: Tensor, n: int = chunk, begin: tuple[int, ...] = tuple(position)) -> Tensor:
            return torch.stack([x[row, :, p : p + n] for row, p in enumerate(begin)])

        layout = continued(chunk, 16, position, None, CPU)
        result = ENTRY[kind](inputs.each(take), weights, layout=layout, state=state, keep_state=True)
        assert result.path == "fused-cpu"
        state = result.state
        assert gap(result.output, take(expected)) < CLOSE
        position = [p + chunk for p in position]
    assert position == [67, 64]


@EACH
def test_the_number_of_threads_does_not_show(kind: str) -> None:
    inputs, weights = inner_inputs(50, 16, 2, 3, 16, scale=1.0), initial_weights(kind, 3, 16)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            result, gradients = run(kind, inputs, weights, torch.float32, "fused-cpu")
            results.append([result.output, *gradients])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@EACH
def test_without_a_compiler_there_is_one_warning_and_the_same_answer(
    kind: str, forgetful: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, weights = inner_inputs(20, 4, heads=2, scale=1.0), initial_weights(kind, 2)
    fused = run(kind, inputs, weights, torch.float32, "auto")[0]
    build.library.cache_clear()
    monkeypatch.setenv(build.OFF, "1")
    with pytest.warns(RuntimeWarning, match=build.OFF) as warned:
        plain = [run(kind, inputs, weights, torch.float32, "auto")[0] for _ in range(2)]
    assert [x.path for x in (fused, *plain)] == ["fused-cpu", "scan", "scan"]
    assert len(warned) == 1
    assert gap(fused.output, plain[0].output.double()) < CLOSE


@EACH
def test_not_a_number_stays_visible(kind: str) -> None:
    inputs, weights = inner_inputs(40, 16, width=16), initial_weights(kind, width=16)
    inputs.v[0, 0, 20] = torch.nan
    output = ENTRY[kind](Inputs(*(x.float() for x in inputs)), tuple(w.float() for w in weights)).output
    assert output[0, 0, 20:].isnan().all()
    assert output[0, 0, :16].isfinite().all()
    assert output[0, 1:].isfinite().all()


def test_what_does_not_fit_is_refused_by_name_and_goes_another_way_unnamed() -> None:
    inputs, weights = inner_inputs(8, 4), initial_weights("linear")
    single = Inputs(*(x.float() for x in inputs))
    with pytest.raises(ValueError, match="path='fused-cpu' needs the published learner in float32"):
        ENTRY["linear"](inputs, weights, path="fused-cpu")
    with pytest.raises(ValueError, match="path='fused-cpu' needs"):
        ENTRY["linear"](single, weights, path="fused-cpu", learner=Learner(bias=False))
    assert ENTRY["linear"](single, weights, learner=Learner(bias=False)).path == "scan"
    assert ENTRY["linear"](inputs, weights).path == "scan"
    assert ENTRY["linear"](single, weights, keep_state=True, record=2).path == "scan"
    assert ENTRY["linear"](single, weights).path == "fused-cpu"
