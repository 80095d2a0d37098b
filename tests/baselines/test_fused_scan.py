"""The C++ scan and convolution against the recurrence as the paper writes it, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines import _fused_scan, _series
from baselines._fused_scan import fused_scan
from tests.baselines.scans import gradients, inputs, scan_step_by_step
from ttt_impl.cpu.convolve import convolve

CHUNK, LANES = 32, 16
"""Tokens in a chunk of the C++ scan, and the most channels in a vector: sizes below and above are tried."""

Outputs = tuple[Tensor, ...]


def fused(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, h: Tensor, bias: Tensor) -> Any:
    return fused_scan(x, dt, bias, A, B, C, D, z, h)


def plain(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, h: Tensor, bias: Tensor) -> Any:
    return scan_step_by_step(x, F.softplus(dt + bias), A, B, C, D, z, h)


def problem(length: int, channels: int = 5, states: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Inputs of `fused`: steps of both signs before their softplus."""
    values = inputs(length, torch.float64, 1.0, channels, states)
    values[1] = values[1].log()
    bias = torch.randn(channels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [value.detach().to(dtype).requires_grad_() for value in (*values, bias)]


def assert_near(found: Outputs | list[Tensor], expected: Outputs | list[Tensor], bound: float = 2e-6) -> None:
    """Errors relative to each tensor's largest value."""
    for mine, exact in zip(found, expected, strict=True):
        error, largest = (mine.double() - exact.double()).abs().max(), exact.abs().max()
        assert float(error.detach()) <= bound * float(largest.detach())


@pytest.fixture
def threads() -> Iterator[list[int]]:
    """Numbers of threads to try; what was set comes back."""
    before = torch.get_num_threads()
    yield [1, 2, 3]
    torch.set_num_threads(before)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_values_and_gradients_are_those_of_the_recurrence_across_chunks(length: int) -> None:
    single, exact = problem(length), problem(length, dtype=torch.float64)
    ours, expected = fused(*single), plain(*exact)
    assert_near(ours, expected)
    assert_near(gradients(ours, single), gradients(expected, exact))


@pytest.mark.parametrize(("channels", "states"), [(1, 1), (LANES, 16), (LANES + 1, 5), (8 * LANES + 7, 4)])
def test_values_and_gradients_at_any_width(channels: int, states: int) -> None:
    single, exact = (problem(7, channels, states, dtype) for dtype in (torch.float32, torch.float64))
    ours, expected = fused(*single), plain(*exact)
    assert_near(ours, expected)
    assert_near(gradients(ours, single), gradients(expected, exact))


@pytest.mark.parametrize("cut", [1, CHUNK, CHUNK + 5])
def test_a_scan_cut_in_two_is_the_whole_scan_with_its_gradients(cut: int) -> None:
    values = problem(2 * CHUNK)
    x, dt, A, B, C, D, z, h, bias = values
    first, state = fused(x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], D, z[:, :cut], h, bias)
    second, last = fused(x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], D, z[:, cut:], state, bias)
    cut_in_two, whole = (torch.cat([first, second], 1), last), fused(*values)
    torch.testing.assert_close(cut_in_two, whole, rtol=0, atol=0)
    assert_near(gradients(cut_in_two, values), gradients(whole, values))


def test_inputs_may_lie_any_way_in_memory() -> None:
    values = problem(9)
    by_time = [v.detach().transpose(0, 1).contiguous().transpose(0, 1) if v.dim() == 3 else v.detach() for v in values]
    by_time[7] = values[7].detach()
    by_channel = [v.detach().transpose(-1, -2).contiguous().transpose(-1, -2) if v.dim() > 1 else v for v in values]
    for moved in (by_time, by_channel):
        torch.testing.assert_close(fused(*moved), fused(*values), rtol=0, atol=0)


def test_the_bits_do_not_depend_on_the_number_of_threads(threads: list[int]) -> None:
    values, found = problem(2 * CHUNK + 1, 20 * LANES), []
    generator = torch.Generator().manual_seed(0)
    taps = [torch.randn(s, generator=generator).requires_grad_() for s in ((320, 1, 4), (320,))]
    for count in threads:
        torch.set_num_threads(count)
        ours, conv = fused(*values), convolve(values[0], torch.zeros(2, 3, 320), *taps, silu=True)
        found.append((ours, conv, gradients(ours, values), gradients((conv,), [values[0], *taps])))
    for one, other in pairwise(found):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_states_that_forget_at_once_stay_exact_and_finite() -> None:
    single, exact = problem(9), problem(9, dtype=torch.float64)
    with torch.no_grad():
        for values in (single, exact):
            values[2].mul_(1e6)
    ours, expected = fused(*single), plain(*exact)
    assert_near(ours, expected)
    assert_near(gradients(ours, single), gradients(expected, exact))


@torch.no_grad()
def test_float32_is_as_close_to_float64_as_the_plain_loop() -> None:
    exact, single = plain(*problem(200, dtype=torch.float64))[0], problem(200)
    error, usual = ((f(*single)[0] - exact).abs().max() for f in (fused, plain))
    assert error < 2 * usual


@torch.no_grad()
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(broken: float) -> None:
    values = problem(9)
    values[1][0, 4, 2] = broken
    y, last = fused(*values)
    assert y[:, :4].isfinite().all()
    assert not y[0, 4:, 2].isfinite().any()
    assert not last[0, 2].isfinite().any()
    assert last[1].isfinite().all()


def test_no_tensor_of_all_states_is_saved() -> None:
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    rows, length, channels, states = 2, 4 * CHUNK, 2 * LANES, 16
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        fused(*problem(length, channels, states))
    assert 0 < saved < rows * length * (channels * states / 8 + 4 * channels + 2 * states)


def test_no_states_are_kept_where_no_backward_can_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def operator(source: Path, name: str, *result: Any) -> Any:
        called.append(name)
        return _series.operator(source, name, *result)

    monkeypatch.setattr(_fused_scan, "operator", operator)
    with torch.no_grad():
        fused(*problem(9))
    assert called == ["scan_forward"]
    fused(*problem(9))
    assert called == ["scan_forward", "starts_size", "scan_forward"]


@pytest.mark.parametrize(("length", "channels", "width"), [(1, 5, 4), (64, LANES, 4), (65, LANES + 1, 3), (130, 40, 1)])
def test_the_convolution_is_the_depthwise_conv1d(length: int, channels: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, length, channels), (channels, 1, width), (channels,), (2, width - 1, channels)
    x, weight, bias, past = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    window = torch.cat([past, x], 1).transpose(1, 2)
    expected = F.silu(F.conv1d(window, weight, bias, groups=channels)).transpose(1, 2)
    single = [v.detach().float().requires_grad_() for v in (x, weight, bias)]
    ours = convolve(single[0], past.float(), *single[1:], silu=True)
    assert_near((ours,), (expected,))
    assert_near(gradients((ours,), single), gradients((expected,), [x, weight, bias]))
