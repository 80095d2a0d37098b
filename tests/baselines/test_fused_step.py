"""Mamba's fused step against its equations, and the fused norm against its own, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines._mamba_step import mamba_step
from baselines._precision import RMSNorm
from tests.baselines.scans import gradients
from ttt_impl.cpu.pointwise import rms_norm


def layer_step_by_step(xz: Tensor, window: Tensor, state: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One token through convolution, selection, scan and gate: y [B, D], and the window and the state after it."""
    weight, bias, select, project, project_bias, A_log, D = parameters
    x, z = xz.chunk(2, -1)
    window = torch.cat([window[..., 1:], x[..., None]], -1)
    x = F.silu((window * weight[:, 0]).sum(-1) + bias)
    rank, states = project.shape[1], A_log.shape[1]
    low, B, C = (x @ select.T).split([rank, states, states], -1)
    step = F.softplus(low @ project.T + project_bias)[..., None]
    state = torch.exp(-step * A_log.exp()) * state + step * x[..., None] * B[:, None]
    return ((state * C[:, None]).sum(-1) + D * x) * F.silu(z), window, state


@pytest.mark.parametrize(
    ("rows", "channels", "states", "width", "rank"), [(1, 5, 3, 4, 2), (3, 33, 16, 1, 7), (2, 16, 20, 2, 1)]
)
def test_steps_follow_the_equations(rows: int, channels: int, states: int, width: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = (channels, 1, width), (channels,), (rank + 2 * states, channels), (channels, rank), (channels,)
    parameters = [normal(*shape) for shape in (*shapes, (channels, states), (channels,))]
    window, state = normal(rows, channels, width), normal(rows, channels, states)
    single = window.float(), state.float()
    for _ in range(3):
        xz = normal(rows, 2 * channels)
        expected, window, state = layer_step_by_step(xz, window, state, *parameters)
        y = mamba_step(xz.float(), *single, *(p.float() for p in parameters))
        for mine, exact in zip((y, *single), (expected, window, state), strict=True):
            torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("shape", [(1, 5), (3, 70, 33), (130, 16)])
def test_the_norm_and_its_gradients_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in (shape, shape[-1:])]
    single = [value.detach().float().requires_grad_() for value in exact]
    norm = RMSNorm(shape[-1], 1e-5).double()
    norm.weight = torch.nn.Parameter(exact[1].detach())
    exact[1] = norm.weight
    ours, expected = rms_norm(*single, 1e-5), norm(exact[0])
    for mine, true in zip((ours, *gradients((ours,), single)), (expected, *gradients((expected,), exact)), strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-6 * float(true.abs().max().detach()))
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(*single, 1e-5), ours.detach(), rtol=0, atol=0)


def test_the_bits_of_the_norm_do_not_depend_on_the_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    x, weight = torch.randn(300, 40, requires_grad=True), torch.randn(40, requires_grad=True)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = rms_norm(x, weight, 1e-5)
            found.append([y, *gradients((y,), [x, weight])])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)
