"""Mamba-3 against its recurrence as the paper writes it, with complex numbers and a token at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines import _decayed_attention, mamba3
from baselines.mamba3 import Config, Inputs, Mamba3, Mamba3Mixer, State
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens

SIZES = {"hidden_size": 24, "num_layers": 2, "head_dim": 6, "intermediate_size": 40, "state_size": 8}


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of five tokens, so that a few tokens cross several borders."""
    monkeypatch.setattr(_decayed_attention, "CHUNK", 5)


@pytest.fixture(scope="module")
def model() -> Mamba3:
    torch.manual_seed(0)
    return checks.disturb(Mamba3.build(Config(**SIZES), VOCAB))


def recurrence(mixer: Mamba3Mixer, inputs: Inputs) -> Tensor:
    """y [B, L, heads, P]: turning pairs are complex numbers times exp(i angle), the state takes the turns itself."""
    heads, states = mixer.C_bias.shape[0], mixer.C_bias.shape[2]
    half = states // 2

    def parts(v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        whole = v[:, None] + bias.squeeze(1)
        return torch.view_as_complex(whole[..., :half].unflatten(-1, (-1, 2)).contiguous()), whole[..., half:]

    turning, still, outputs, last = 0.0, 0.0, [], None
    for t in range(inputs.x.shape[1]):
        x, dt, mix = inputs.x[:, t], inputs.dt[:, t, :, None, None], inputs.trapezoid[:, t].sigmoid()[..., None, None]
        alpha = inputs.decay[:, t].exp()[..., None, None]
        phase = torch.polar(torch.ones(()).double(), math.pi * inputs.angle[:, t, None].tanh() * dt.squeeze(-1))
        now = [x[..., None] * b[..., None, :] for b in parts(inputs.B[:, t], mixer.B_bias)]
        before = [torch.zeros_like(v) for v in now] if last is None else last
        rotated = alpha * (turning + (1 - mix) * dt * before[0])
        turning = rotated * phase.conj()[..., None, :] + mix * dt * now[0]
        still = alpha * (still + (1 - mix) * dt * before[1]) + mix * dt * now[1]
        last, (c, d) = now, parts(inputs.C[:, t], mixer.C_bias)
        y = (turning * c.conj()[..., None, :]).real.sum(-1) + (still * d[..., None, :]).sum(-1)
        outputs.append((y + mixer.D[:, None] * x) * F.silu(inputs.z[:, t]))
    assert heads == outputs[0].shape[1]
    return torch.stack(outputs, 1)


def test_chunks_are_the_papers_recurrence(model: Mamba3) -> None:
    mixer = model.mixers[0]
    assert isinstance(mixer, Mamba3Mixer)
    mixer = mixer.double()
    try:
        x = torch.randn(2, 23, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        inputs = mixer._inputs(3 * x)
        found, _ = mixer._chunks(inputs, None)
        torch.testing.assert_close(found, recurrence(mixer, inputs), rtol=1e-11, atol=1e-11)
    finally:
        mixer.float()


def test_any_split_is_one_pass(model: Mamba3) -> None:
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
    checks.any_split_is_one_pass(model, torch.float64, 1e-12)


def test_float64_is_kept(model: Mamba3) -> None:
    checks.float64_is_kept(model)


def test_the_state_does_not_grow(model: Mamba3) -> None:
    layer = 8 * (6 * 8 + 8 // 4 + 8 + 6)
    for length in (1, 3, 50):
        with torch.no_grad():
            assert model.state_bytes(model.prefill(tokens(3, length))[1]) == 4 * 3 * 2 * layer


def test_flops_are_what_torch_counts(model: Mamba3) -> None:
    counted = checks.counted_flops(model, 19)
    for mode in ("prefill", "step", "train"):
        assert model.flops(19, mode) == counted[mode]  # type: ignore[arg-type]


def test_the_rate_has_a_floor_and_the_start_is_mamba_ssms() -> None:
    torch.manual_seed(0)
    mixer = Mamba3.build(Config(**(SIZES | {"head_dim": 2})), VOCAB).mixers[0]
    dt = F.softplus(mixer.dt_bias)
    assert 0.99e-3 <= dt.min() < dt.max() <= 0.101
    assert (mixer.B_bias == 1).all()
    inputs = mixer._inputs(torch.randn(1, 3, 24))
    with torch.no_grad():
        mixer.in_proj.weight.zero_()
        columns = sum(mixer.sizes[:5])
        mixer.in_proj.weight[columns : columns + mixer.sizes[5], 0] = -1e4
    slow = mixer._inputs(torch.ones(1, 3, 24))
    torch.testing.assert_close(slow.decay / slow.dt, torch.full_like(inputs.decay, -1e-4))


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^mamba3: state_size=6 must be a multiple of 4"):
        Config(state_size=6)
    with pytest.raises(ValueError, match=r"^mamba3: expand=0 must be at least 1"):
        Config(expand=0)


@torch.no_grad()
def test_mamba_ssms_kernel_is_called_as_it_is_documented(model: Mamba3, monkeypatch: pytest.MonkeyPatch) -> None:
    def siso(
        Q: Tensor, K: Tensor, V: Tensor, ADT: Tensor, DT: Tensor, Trap: Tensor, Q_bias: Tensor, K_bias: Tensor,
        Angles: Tensor, D: Tensor, Z: Tensor, Input_States: Any, chunk_size: int, return_final_states: bool,
    ) -> Any:  # fmt: skip
        """Its signature, layouts and step rule (mamba3_siso_step)."""
        rows, length, heads, _ = V.shape
        assert Q.shape[2] == 1
        assert Angles.shape[:3] == (rows, length, heads)
        assert return_final_states
        assert chunk_size == 64
        states = Q.shape[-1]
        empty = [V.new_zeros(rows, heads, n) for n in (Angles.shape[-1], states, V.shape[-1])]
        if Input_States is None:
            Input_States = (empty[0], V.new_zeros(rows, heads, V.shape[-1], states), empty[1], empty[2])
        angle, S, k_last, v_last = Input_States
        outputs = []
        for t in range(length):
            dt, trap, alpha = DT[..., t], Trap[..., t].sigmoid(), ADT[..., t].exp()
            angle = angle + torch.tanh(Angles[:, t]) * math.pi * dt[..., None]
            q, k = (mamba3.turned(x[:, t] + bias, angle) for x, bias in ((Q, Q_bias), (K, K_bias)))
            beta, gamma = alpha * dt * (1 - trap), trap * dt
            S = alpha[..., None, None] * S + (beta[..., None] * v_last)[..., None] * k_last[..., None, :]
            S = S + (gamma[..., None] * V[:, t])[..., None] * k[..., None, :]
            outputs.append(((S * q[..., None, :]).sum(-1) + D[:, None] * V[:, t]) * F.silu(Z[:, t]))
            k_last, v_last = k, V[:, t]
        return torch.stack(outputs, 1), angle, S, k_last, v_last

    expected = model.forward(tokens(3, 29))
    assert model.kernel_path == "torch-chunks"
    monkeypatch.setattr(mamba3, "kernel_for", lambda x: siso)
    torch.testing.assert_close(model.forward(tokens(3, 29)), expected, rtol=0, atol=1e-5)
    assert model.kernel_path == "mamba-ssm"
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
    _, state = model.prefill(tokens(1, 4))
    assert isinstance(state.layers[0][1], State)
