"""The chunked gated delta rule against its equation, a token at a time, differentiated by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baselines import gated_deltanet
from baselines.gated_deltanet import Config, GatedDeltaNet, gated_delta_rule, unit
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens

SIZES = {"hidden_size": 24, "num_layers": 2, "head_dim": 6, "intermediate_size": 40}


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of five tokens, so that a few tokens cross several borders."""
    monkeypatch.setattr(gated_deltanet, "CHUNK", 5)


@pytest.fixture(scope="module")
def model() -> GatedDeltaNet:
    torch.manual_seed(0)
    return checks.disturb(GatedDeltaNet.build(Config(**SIZES), VOCAB))


def recurrence(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, a: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = S_{t-1} alpha_t (I - beta_t k_t k_t^T) + beta_t v_t k_t^T, equation 10 as it stands there."""
    outputs = []
    for t in range(v.shape[2]):
        kt, b = k[:, :, t, None], beta[:, :, t, None, None]
        S = a[:, :, t, None, None].exp() * S @ (torch.eye(k.shape[-1], dtype=k.dtype) - b * kt.mT @ kt)
        S = S + b * v[:, :, t, :, None] @ kt
        outputs.append((S @ q[:, :, t, :, None]).squeeze(-1))
    return torch.stack(outputs, 2), S


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("length", [1, 5, 23])
def test_chunks_are_the_equation_with_its_gradients(dtype: torch.dtype, bound: float, length: int) -> None:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    q, k, v, S = normal(2, 3, length, 4), unit(normal(2, 3, length, 4)), normal(2, 3, length, 5), normal(2, 3, 5, 4)
    inputs = [x.requires_grad_() for x in (q, k, v, normal(2, 3, length).sigmoid(), -normal(2, 3, length).abs(), S)]
    found = []
    for function in (gated_delta_rule, recurrence):
        y, last = function(*inputs)
        found.append((y, last, *torch.autograd.grad(y.sin().sum() + last.sin().sum(), inputs)))
    torch.testing.assert_close(*found, rtol=bound, atol=bound)


def test_what_is_written_twice_is_kept_once() -> None:
    """With beta = 1 and no decay the memory returns the last value of a key exactly, whatever it held before."""
    k = torch.tensor([1.0, 0, 0, 0]).repeat(1, 1, 9, 1)
    v = torch.arange(9.0).reshape(1, 1, 9, 1)
    y, S = gated_delta_rule(k, k, v, torch.ones(1, 1, 9), torch.zeros(1, 1, 9))
    torch.testing.assert_close(y, v)
    torch.testing.assert_close(S, torch.tensor([[[[8.0, 0, 0, 0]]]]))


def test_any_split_is_one_pass(model: GatedDeltaNet) -> None:
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
    checks.any_split_is_one_pass(model, torch.float64, 1e-12)


def test_float64_is_kept(model: GatedDeltaNet) -> None:
    checks.float64_is_kept(model)


def test_flops_are_what_torch_counts_and_the_system_and_convolution_that_it_does_not_see(
    model: GatedDeltaNet,
) -> None:
    length, padded, chunk, width, layers = 19, 20, 5, 24, 2
    counted = checks.counted_flops(model, length)
    convolution = layers * 2 * 3 * width * 4
    solved = layers * 2 * width
    assert model.flops(length, "prefill") == counted["prefill"] + length * convolution + padded * chunk * solved
    assert model.flops(length, "step") == counted["step"] + convolution + solved
    assert model.flops(length, "train") == pytest.approx(counted["train"] + 3 * length * convolution, rel=0.03)


@torch.no_grad()
def test_the_state_does_not_grow(model: GatedDeltaNet) -> None:
    for length in (1, 50):
        _, state = model.prefill(tokens(3, length))
        assert model.state_bytes(state) == 4 * 3 * 2 * (24 * 6 + 3 * 3 * 24)


def test_it_trains_under_autocast(model: GatedDeltaNet) -> None:
    exact = model.forward(tokens(2, 30))
    model.model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        gap = (model.forward(tokens(2, 30)) - exact.detach()).abs().mean()
    gap.backward()
    assert gap < 0.03 * exact.std()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.model.parameters())
