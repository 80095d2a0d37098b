"""TTT-MLP's forward kernel, run by the emulator, against the primal form in float64 and against itself."""

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.kernels.cases_mlp import NORMALISED, STATE, Case, case, double, excess, forward, primal, same
from tests.ttt_impl.kernels.test_linear_forward_emulation import guard
from ttt_impl.kernels import emulation
from ttt_impl.kernels.bounds import error

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")


@pytest.mark.parametrize("length", [1, 15, 16, 17, 53, 512])
def test_matches_the_primal_form(length: int) -> None:
    x = case(length, batch=1 if length > 64 else 2, heads=2 if length < 512 else 1, seed=length)
    assert excess(x, forward(x)) < 1


def test_long_sequences_stay_accurate() -> None:
    x = case(2048)
    result, (out, ends) = forward(x), primal(double(x))
    late = slice(-256, None)
    normalised = (out - x.q.double())[:, late]
    assert error((result.out.double() - x.q.double())[:, late], normalised) < NORMALISED
    assert max(error(result.end1, ends[0]), error(result.end2, ends[1])) < STATE


def test_accumulation_that_rounds_towards_zero_stays_within_the_bounds() -> None:
    x = case(256)
    with emulation.schedule(truncate=1):
        truncated = forward(x)
    assert excess(x, truncated) < 1
    assert not torch.equal(truncated.end2, forward(x).end2)


@pytest.mark.parametrize("change", [{"rate": 4.0}, {"scale": 3.0}, {"scale": 0.2}, {"scale": 1e-2}])
def test_corners_match_the_primal_form(change: dict[str, float]) -> None:
    """The smallest weights give an output of a variance near LayerNorm's epsilon: only they tell it apart."""
    x = case(40, **change)
    assert excess(x, forward(x)) < 1


def test_without_a_rate_nothing_is_learned() -> None:
    x = case(32, rate=0)
    result = forward(x)
    assert torch.equal(result.end1, x.start1)
    assert torch.equal(result.end2, x.start2)


@pytest.mark.parametrize("first", [0, 5, 15, 16, 37])
def test_the_future_changes_no_bit(first: int) -> None:
    x, other = case(53), case(53, seed=1)
    mixed = Case(*(torch.cat([a[:, :first], b[:, first:]], 1) for a, b in zip(x[:3], other[:3], strict=True)),
                 torch.cat([x.lr[:, :, :first], other.lr[:, :, first:]], 2), *x[4:])  # fmt: skip
    assert torch.equal(forward(x).out[:, :first], forward(mixed).out[:, :first])


@pytest.mark.parametrize("border", [1, 15, 16, 23, 48])
def test_chunks_equal_one_call(border: int) -> None:
    """Bit by bit, at the start of a mini-batch and inside: the rows held are the same numbers too."""
    x = case(61, batch=2)
    whole, first = forward(x), forward(x.tokens(0, border))
    second = x.tokens(border)._replace(start1=first.end1, start2=first.end2)
    taken = border % 16
    rest = forward(second, first.keys, first.ghat2, segments(second, taken), 16) if taken else forward(second)
    assert same(rest._replace(out=torch.cat([first.out, rest.out], 1)), whole)


def test_packed_documents_are_read_apart() -> None:
    x = case(60, batch=2)
    borders = [(0, 0, 20), (0, 20, 1), (0, 21, 39), (1, 0, 48), (1, 50, 10)]
    table, total = [], 0
    for row, begin, tokens in borders:
        table.append([row, begin, tokens, 0, total])
        total += -(-tokens // 16)
    starts = dict(zip(("start1", "start2"), (w[:1] for w in x[7:]), strict=True))
    many = x._replace(**{name: w.repeat(len(table), 1, 1) for name, w in starts.items()})
    packed = forward(many, segments=torch.tensor(table, dtype=torch.int32), mini_batches=total)
    for s, (row, begin, tokens) in enumerate(borders):
        alone = forward(x.rows([row]).tokens(begin, begin + tokens)._replace(**starts))
        part = packed._replace(out=packed.out[row : row + 1, begin : begin + tokens])
        assert same(part._replace(**{name: getattr(part, name)[s : s + 1] for name in part._fields[1:6]}), alone)
    assert not packed.out[1, 48:50].any()


def test_rows_and_heads_do_not_meet() -> None:
    x = case(21, batch=2, heads=3)
    turned = forward(x.rows([1, 0]).heads([2, 0, 1]))
    assert torch.equal(turned.out, forward(x).out[[1, 0]][:, :, [2, 0, 1]])


def test_saving_for_the_backward_pass_changes_nothing() -> None:
    x = case(53)
    assert same(forward(x), forward(x, save=True))


def test_nothing_is_touched_beyond_the_tensors() -> None:
    """Inputs between NaN: a read outside poisons the result."""
    x = case(21, batch=2, heads=2)
    assert same(forward(Case(*(guard(t) for t in x))), forward(x))


def segments(x: Case, taken: int) -> Tensor:
    """A table of whole rows of which earlier calls hold `taken` slots."""
    batch, length = x.q.shape[:2]
    count = -(-(taken + length) // 16)
    return torch.tensor([[b, 0, length, taken, b * count] for b in range(batch)], dtype=torch.int32)
