"""TTT-Linear's forward kernel, run by the emulator, against the primal form in float64 and against itself."""

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.kernels.cases import NORMALISED, STATE, Case, case, double, error, excess, forward, primal, same
from ttt_impl.kernels import emulation, operators

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")


@pytest.mark.parametrize("length", [1, 15, 16, 17, 53, 512])
def test_matches_the_primal_form(length: int) -> None:
    x = case(length, batch=1 if length > 64 else 2, heads=2, seed=length)
    assert excess(x, forward(x)) < 1


@pytest.mark.parametrize("width", [96, 128])
def test_wider_heads_match_the_primal_form(width: int) -> None:
    x = case(85, heads=2, width=width)
    assert excess(x, forward(x)) < 1


def test_two_slices_a_warp_match_the_primal_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "NARROW_HEADS", 0)
    x = case(85, batch=2, heads=2)
    assert excess(x, forward(x)) < 1


def test_long_sequences_stay_accurate() -> None:
    """The output's residual shrinks against its LN part over time, so the LN part is what is held."""
    x = case(2048)
    result, (out, end) = forward(x), primal(double(x))
    late = slice(-256, None)
    normalised = (out - x.q.double())[:, late]
    assert error((result.out.double() - x.q.double())[:, late], normalised) < NORMALISED
    assert error(result.end, end) < STATE


def test_accumulation_that_rounds_towards_zero_stays_within_the_bounds() -> None:
    """Tensor cores truncate when they add; the bounds must not rest on rounding to nearest."""
    x = case(512)
    with emulation.schedule(truncate=1):
        truncated = forward(x)
    assert excess(x, truncated) < 1
    assert not torch.equal(truncated.end, forward(x).end)


@pytest.mark.parametrize("change", [{"rate": 4.0}, {"scale": 0.3}, {"scale": 1e-4}])
def test_corners_match_the_primal_form(change: dict[str, float]) -> None:
    """Weights of about 1e-4 have a variance near LayerNorm's epsilon: only they tell it apart."""
    x = case(40, heads=2, **change)
    assert excess(x, forward(x)) < 1


def test_without_a_rate_nothing_is_learned() -> None:
    x = case(32, rate=0)
    assert torch.equal(forward(x).end, x.start)


@pytest.mark.parametrize("first", [0, 5, 15, 16, 37])
def test_the_future_changes_no_bit(first: int) -> None:
    x, other = case(53, heads=2), case(53, heads=2, seed=1)
    mixed = Case(*(torch.cat([a[:, :first], b[:, first:]], 1) for a, b in zip(x[:3], other[:3], strict=True)),
                 torch.cat([x.lr[:, :, :first], other.lr[:, :, first:]], 2), *x[4:])  # fmt: skip
    assert torch.equal(forward(x).out[:, :first], forward(mixed).out[:, :first])


@pytest.mark.parametrize("border", [1, 15, 16, 23, 48])
def test_chunks_equal_one_call(border: int) -> None:
    """Bit by bit at the start of a mini-batch; inside one, the held Ghat are the same numbers too."""
    x = case(61, batch=2, heads=2)
    whole, first = forward(x), forward(x.tokens(0, border))
    second = x.tokens(border)._replace(start=first.end)
    taken = border % 16
    rest = forward(second, first.keys, first.ghat, segments(second, taken), 16) if taken else forward(second)
    assert torch.equal(torch.cat([first.out, rest.out], 1), whole.out)
    assert torch.equal(rest.end, whole.end)
    assert torch.equal(rest.ghat, whole.ghat)
    assert torch.equal(rest.keys, whole.keys)


def test_packed_documents_are_read_apart() -> None:
    x = case(60, batch=2, heads=2)
    borders = [(0, 0, 20), (0, 20, 1), (0, 21, 39), (1, 0, 48), (1, 50, 10)]
    table, total = [], 0
    for row, begin, tokens in borders:
        table.append([row, begin, tokens, 0, total])
        total += -(-tokens // 16)
    start = x.start.unflatten(0, (2, -1))[:1].repeat(len(table), 1, 1, 1).flatten(0, 1)
    packed = forward(x._replace(start=start), segments=torch.tensor(table, dtype=torch.int32), mini_batches=total)
    for s, (row, begin, tokens) in enumerate(borders):
        alone = x.rows([row]).tokens(begin, begin + tokens)._replace(start=start[:2])
        result = forward(alone)
        assert torch.equal(packed.out[row : row + 1, begin : begin + tokens], result.out)
        assert torch.equal(packed.end[2 * s : 2 * s + 2], result.end)
        assert torch.equal(packed.ghat[2 * s : 2 * s + 2], result.ghat)
    assert not packed.out[1, 48:50].any()


def test_rows_and_heads_do_not_meet() -> None:
    x = case(37, batch=2, heads=3)
    turned = forward(x.rows([1, 0]).heads([2, 0, 1]))
    assert torch.equal(turned.out, forward(x).out[[1, 0]][:, :, [2, 0, 1]])


def test_saving_for_the_backward_pass_changes_nothing() -> None:
    x = case(53)
    assert same(forward(x), forward(x, save=True))


def test_nothing_is_touched_beyond_the_tensors() -> None:
    """Inputs between NaN: a read outside poisons the result."""
    x = case(21, batch=2, heads=2)
    guarded = Case(*(guard(t) for t in x))
    assert same(forward(guarded), forward(x))


def guard(x: Tensor) -> Tensor:
    """x in the middle of a larger buffer of NaN."""
    buffer = torch.full((x.numel() + 2048,), float("nan"), dtype=x.dtype)
    inside = buffer[1024 : 1024 + x.numel()].view(x.shape)
    return inside.copy_(x)


def segments(x: Case, taken: int) -> Tensor:
    """A table of whole rows of which earlier calls hold `taken` slots."""
    batch, length = x.q.shape[:2]
    count = -(-(taken + length) // 16)
    return torch.tensor([[b, 0, length, taken, b * count] for b in range(batch)], dtype=torch.int32)
