"""The shared recurrence against its definition, on both of its ways."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from baselines import _linear_recurrence
from baselines._linear_recurrence import linear_recurrence, linear_step
from tests.baselines.scans import gradients

SHAPES = [(2, 1, 5), (3, 17, 4, 6), (1, 40, 300)]


@pytest.fixture(params=["fused", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The C++ operator, or the loop in PyTorch in its place."""
    monkeypatch.setattr(
        _linear_recurrence, "fits", lambda x, source: request.param == "fused" and x.dtype == torch.float32
    )
    return str(request.param)


def step_by_step(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    outputs = []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        outputs.append(h)
    return torch.stack(outputs, 1)


def problem(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Gates a around one, inputs b and a state, at random."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    state = torch.randn(shape[0], *shape[2:], generator=generator, dtype=torch.float64)
    return [value.to(dtype).requires_grad_() for value in (torch.sigmoid(a), b, state)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_definition(path: str, shape: tuple[int, ...]) -> None:
    for dtype, bound in ((torch.float32, 3e-6), (torch.float64, 1e-13)):
        values, exact = problem(*shape, dtype=dtype), problem(*shape, dtype=torch.float64)
        ours, expected = linear_recurrence(*values), step_by_step(*exact)
        torch.testing.assert_close(ours, expected.to(dtype), rtol=bound, atol=bound)
        found, wanted = gradients((ours,), values), gradients((expected,), exact)
        torch.testing.assert_close(found, [w.to(dtype) for w in wanted], rtol=bound, atol=bound)


def test_a_scan_cut_in_two_is_the_whole_scan_with_its_gradients(path: str) -> None:
    values = problem(2, 20, 7)
    a, b, state = values
    first = linear_recurrence(a[:, :9], b[:, :9], state)
    cut_in_two, whole = (
        torch.cat([first, linear_recurrence(a[:, 9:], b[:, 9:], first[:, -1])], 1),
        linear_recurrence(*values),
    )
    torch.testing.assert_close(cut_in_two, whole, rtol=0, atol=0)
    torch.testing.assert_close(gradients((cut_in_two,), values), gradients((whole,), values), rtol=1e-6, atol=1e-6)


def test_a_gate_that_is_the_same_at_all_times_broadcasts(path: str) -> None:
    a, b, _ = problem(2, 20, 7)
    gate = a[0, 0].detach().requires_grad_()
    spread = gate.detach().expand_as(b).clone().requires_grad_()
    ours, expected = linear_recurrence(gate, b), linear_recurrence(spread, b, torch.zeros(2, 7))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    (mine,), (each,) = gradients((ours,), [gate]), gradients((expected,), [spread])
    torch.testing.assert_close(mine, each.sum((0, 1)))


@torch.no_grad()
def test_steps_go_on_where_the_scan_ends(path: str) -> None:
    a, b, state = problem(2, 20, 3, 5)
    whole, memory = linear_recurrence(a, b, state), state.clone()
    for t in range(20):
        torch.testing.assert_close(linear_step(memory, a[:, t], b[:, t]), whole[:, t], rtol=1e-6, atol=1e-6)
    low = linear_recurrence(a.bfloat16(), b.bfloat16(), state.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), whole, rtol=0.05, atol=0.05)


@pytest.fixture
def threads() -> Iterator[list[int]]:
    before = torch.get_num_threads()
    yield [1, 2, 3]
    torch.set_num_threads(before)


def test_the_bits_do_not_depend_on_the_number_of_threads(threads: list[int]) -> None:
    values, found = problem(2, 12, 700), []
    for count in threads:
        torch.set_num_threads(count)
        h = linear_recurrence(*values)
        found.append([h, *gradients((h,), values)])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)
