"""The scan against the recurrence as the paper writes it, one step at a time, differentiated by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from baselines import _selective_scan
from baselines._causal_conv import causal_conv
from baselines._selective_scan import selective_scan, selective_step
from tests.baselines.scans import CHANNELS, ROWS, STATES, gradients, inputs, scan_step_by_step


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of four steps at this module's sizes, so that a few tokens cross several borders."""
    monkeypatch.setattr(_selective_scan, "CHUNK_ELEMENTS", 4 * ROWS * CHANNELS * STATES)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 23])
def test_values_and_gradients_are_those_of_the_recurrence(length: int) -> None:
    values = inputs(length)
    ours, expected = selective_scan(*values), scan_step_by_step(*values)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(ours, values), gradients(expected, values), rtol=1e-11, atol=1e-11)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(selective_scan, inputs(6))


def test_without_gate_and_state_it_starts_from_zero_and_leaves_y_alone() -> None:
    x, dt, A, B, C, D, z, h = inputs(9)
    bare = selective_scan(x, dt, A, B, C, D)
    y, state = selective_scan(x, dt, A, B, C, D, z, torch.zeros_like(h))
    torch.testing.assert_close((bare[0] * F.silu(z), bare[1]), (y, state), rtol=0, atol=0)


@pytest.mark.parametrize("cut", [1, 4, 10])
def test_a_scan_cut_in_two_is_the_whole_scan_with_its_gradients(cut: int) -> None:
    values = inputs(11)
    x, dt, A, B, C, D, z, h = values
    first, state = selective_scan(x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], D, z[:, :cut], h)
    second, last = selective_scan(x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], D, z[:, cut:], state)
    cut_in_two, whole = (torch.cat([first, second], 1), last), selective_scan(*values)
    torch.testing.assert_close(cut_in_two, whole, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradients(cut_in_two, values), gradients(whole, values), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_that_forget_at_once_stay_exact_and_finite(dtype: torch.dtype) -> None:
    values = inputs(9, dtype, forgets=1e3)
    assert float((values[1].max() * values[2].min()).detach()) < -1e4
    ours, expected = selective_scan(*values), scan_step_by_step(*values)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, values), gradients(expected, values))


def test_float32_is_as_close_to_float64_as_the_plain_loop() -> None:
    with torch.no_grad():
        exact, single = scan_step_by_step(*inputs(200))[0], inputs(200, torch.float32)
        error, plain = ((f(*single)[0] - exact).abs().max() for f in (selective_scan, scan_step_by_step))
    assert error < 2 * plain


def test_low_precision_inputs_are_scanned_in_float32() -> None:
    values = [value.detach().bfloat16() for value in inputs(40)]
    y, state = selective_scan(*values)
    expected, last = selective_scan(*(value.float() for value in values))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close((y, state), (expected.bfloat16(), last), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = selective_scan(*(value.float() for value in values))
    torch.testing.assert_close((y, state), (expected, last), rtol=0, atol=0)


def test_no_tensor_of_all_states_is_saved() -> None:
    length, saved = 64, 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        selective_scan(*inputs(length))
    assert 0 < saved < ROWS * length * (CHANNELS * STATES / 4 + 8 * CHANNELS + 2 * STATES)


def test_nothing_is_saved_where_no_backward_can_follow() -> None:
    class Clones(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten.clone.default
            return func(*args, **(kwargs or {}))

    values = inputs(64)
    with Clones() as trained:
        selective_scan(*values)
    with Clones() as read, torch.no_grad():
        selective_scan(*values)
    assert trained.count - read.count == 64 // 4


def test_a_step_is_a_scan_of_one_token_in_place() -> None:
    x, dt, A, B, C, D, _, h = (value.detach() for value in inputs(1))
    y, state = selective_scan(x, dt, A, B, C, D, initial_state=h)
    memory = h.data_ptr()
    torch.testing.assert_close(selective_step(h, x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D), y[:, 0])
    torch.testing.assert_close(h, state)
    assert h.data_ptr() == memory


def test_the_convolution_is_the_depthwise_conv1d() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (ROWS, 13, CHANNELS), (CHANNELS, 1, 4), (CHANNELS,)
    x, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    expected = F.conv1d(x.transpose(1, 2), weight, bias, groups=CHANNELS).transpose(1, 2)
    torch.testing.assert_close(causal_conv(x, weight, bias), expected, rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(causal_conv, (x, weight, bias))
