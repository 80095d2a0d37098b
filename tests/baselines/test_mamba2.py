"""Mamba-2 is transformers' Mamba-2, with a state that any number of tokens may continue."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from baselines import _decayed_attention, _mamba2_model, mamba2
from baselines._decayed_attention import decayed_attention
from baselines.config import SizeConfig, fit_to_size
from baselines.mamba2 import Config, Mamba2
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens

CONFIG = Config(hidden_size=16, num_layers=2, head_dim=4, state_size=6, num_groups=2)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of five tokens, so that a few tokens cross several borders."""
    monkeypatch.setattr(_decayed_attention, "CHUNK", 5)


@pytest.fixture(scope="module")
def model() -> Mamba2:
    torch.manual_seed(0)
    return checks.disturb(Mamba2.build(CONFIG, VOCAB))


@pytest.fixture(scope="module")
def stock(model: Mamba2) -> transformers.Mamba2ForCausalLM:
    other = transformers.Mamba2ForCausalLM(model.model.config)
    other.load_state_dict(model.model.state_dict())
    return other.eval()


def recurrence(q: Tensor, k: Tensor, v: Tensor, a: Tensor, S: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """As the module's docstring writes it, a token at a time; q and k [B, L, H, N] of every head."""
    outputs = []
    for t in range(v.shape[1]):
        S = a[:, t, :, None, None].exp() * S
        seen = S + own[:, t, ..., None] * k[:, t, :, None]
        S = S + v[:, t, ..., None] * k[:, t, :, None]
        outputs.append((seen @ q[:, t, ..., None]).squeeze(-1))
    return torch.stack(outputs, 1), S


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("length", [1, 4, 5, 23])
def test_chunks_are_the_recurrence_with_its_gradients(dtype: torch.dtype, bound: float, length: int) -> None:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    q, k, v, own = normal(2, length, 2, 3), normal(2, length, 2, 3), normal(2, length, 4, 5), normal(2, length, 4, 5)
    a, S = -normal(2, length, 4).abs(), normal(2, 4, 5, 3)
    inputs, found = (q, k, v, S, own), []
    for function, repeats in ((decayed_attention, 1), (recurrence, 2)):
        y, last = function(q.repeat_interleave(repeats, 2), k.repeat_interleave(repeats, 2), v, a, S, own)
        found.append((y, last, *torch.autograd.grad(y.sin().sum() + last.sin().sum(), inputs, retain_graph=True)))
    torch.testing.assert_close(*found, rtol=bound, atol=bound)


def test_what_forgets_at_once_stays_finite() -> None:
    v, a = torch.ones(1, 12, 1, 2), torch.full((1, 12, 1), -1e4)
    q = torch.ones(1, 12, 1, 3).requires_grad_()
    y, _ = decayed_attention(q, torch.ones(1, 12, 1, 3), v, a)
    y.sum().backward()
    torch.testing.assert_close(y, torch.full_like(y, 3.0))
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_logits_and_gradients_are_those_of_transformers(model: Mamba2, stock: transformers.Mamba2ForCausalLM) -> None:
    ids, mask = tokens(2, 33), torch.ones(2, 33, dtype=torch.long)
    mask[1, :5] = 0
    for options in ({}, {"attention_mask": mask}):
        found = []
        for module in (model.model, stock):
            module.zero_grad()
            out = module(ids, labels=ids, use_cache=False, **options)
            out.loss.backward()
            found.append((out.logits.detach(), [p.grad for p in module.parameters()]))
        torch.testing.assert_close(*found, rtol=0, atol=1e-5)


@torch.no_grad()
def test_generate_draws_what_transformers_draws(model: Mamba2, stock: transformers.Mamba2ForCausalLM) -> None:
    for options in ({"do_sample": True}, {"num_beams": 3, "do_sample": False}):
        drawn = []
        for module in (model.model, stock):
            torch.manual_seed(3)
            drawn.append(module.generate(tokens(2, 11), max_new_tokens=8, **options))
        torch.testing.assert_close(*drawn, rtol=0, atol=0)


def test_any_split_is_one_pass(model: Mamba2) -> None:
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
    checks.any_split_is_one_pass(model, torch.float64, 1e-12)


def test_float64_is_kept(model: Mamba2) -> None:
    checks.float64_is_kept(model)


def test_rows_are_independent_and_generate_follows_forward(model: Mamba2) -> None:
    checks.rows_are_independent(model)
    checks.generate_follows_forward(model)


def test_a_half_precision_model_is_near_the_full_one(model: Mamba2) -> None:
    half = copy.deepcopy(model)
    half.model.bfloat16()
    with torch.no_grad():
        whole, exact = half.forward(tokens(2, 30)), model.forward(tokens(2, 30))
        first, state = half.prefill(tokens(2, 30)[:, :13], logits_to_keep=0)
        second, state = half.prefill(tokens(2, 30)[:, 13:29], state, logits_to_keep=0)
        third, _ = half.step(tokens(2, 30)[:, 29:], state)
    gap = (whole - exact).abs()
    assert gap.mean() < 0.02 * exact.std()
    torch.testing.assert_close(torch.cat([first, second, third], 1), whole, rtol=0, atol=4 * float(gap.max()))


def test_saved_and_loaded_both_ways(model: Mamba2, stock: transformers.Mamba2ForCausalLM, tmp_path: Path) -> None:
    checks.stock_transformers_loads_it(model, tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    for name in ("ours", "stock"):
        loaded = Mamba2.load(Config(checkpoint=str(tmp_path / name)))
        torch.testing.assert_close(loaded.forward(tokens(1, 9)), model.forward(tokens(1, 9)), rtol=0, atol=0)


def test_it_starts_as_the_official_one_does() -> None:
    torch.manual_seed(0)
    fresh = Mamba2.build(Config(hidden_size=256, num_layers=3, head_dim=2), VOCAB).model
    assert fresh.backbone.embeddings.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert fresh.lm_head.weight is fresh.backbone.embeddings.weight
    for mixer in (block.mixer for block in fresh.backbone.layers):
        A, dt = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
        assert 1 <= A.min() < 1.5
        assert 15.5 < A.max() <= 16
        assert 1e-3 * 0.99 <= dt.min() < dt.max() <= 0.1 * 1.01
        for weight, fan_in, scale in (
            (mixer.in_proj.weight, 256, 1), (mixer.conv1d.weight, 4, 1), (mixer.out_proj.weight, 512, 3**-0.5)
        ):  # fmt: skip
            bound = scale * math.sqrt(1 / fan_in)
            assert 0.97 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize(("parameters", "hidden_size", "num_layers", "head_dim", "vocab_size"), [
    (60_000, 32, 2, 16, 256), (700_000, 128, 4, 32, 256), (2_000_000, 192, 6, 32, 256), (10_000_000, 320, 8, 64, 256),
    (125_000_000, 768, 12, 64, 32_000), (1_300_000_000, 2048, 24, 64, 32_000),
])  # fmt: skip
def test_sizes_are_met(parameters: int, hidden_size: int, num_layers: int, head_dim: int, vocab_size: int) -> None:
    size = SizeConfig(parameters, 0.05 if parameters < 1e5 else 0.02, hidden_size, num_layers, head_dim)
    fitted = fit_to_size("mamba2", Config(), size, vocab_size)
    assert fitted.hidden_size is not None
    assert 0.75 <= fitted.hidden_size / hidden_size <= 1.25


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^mamba2: state_size=0 must be at least 1$"):
        Config(state_size=0)
    with pytest.raises(ValueError, match=r"^mamba2: expand × hidden_size = 48 is not a multiple of .* = 32$"):
        Config(hidden_size=24, head_dim=32)


def test_flops_are_what_torch_counts_and_the_convolution_that_it_does_not_see(model: Mamba2) -> None:
    length, layers, convolved, kernel = 19, 2, 32 + 2 * 2 * 6, 4
    counted, unseen = checks.counted_flops(model, length), layers * 2 * kernel * convolved
    assert model.flops(length, "prefill") == counted["prefill"] + length * unseen
    assert model.flops(length, "step") == counted["step"] + unseen
    assert model.flops(length, "train") == counted["train"] + 3 * length * unseen


@torch.no_grad()
def test_the_state_is_the_same_after_any_number_of_tokens(model: Mamba2) -> None:
    sizes = set()
    for length in (1, 3, 50):
        _, state = model.prefill(tokens(3, length))
        sizes.add(model.state_bytes(state))
        _, state = model.step(tokens(3, 1), state)
        sizes.add(model.state_bytes(state))
    assert sizes == {4 * 3 * 2 * (32 * 6 + 4 * (32 + 2 * 2 * 6))}


@torch.no_grad()
def test_the_kernel_is_called_as_it_is_documented(model: Mamba2, monkeypatch: pytest.MonkeyPatch) -> None:
    """mamba-ssm's function after its documentation: signature, layouts, meaning."""

    def chunk_scan(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Any = None, z: Any = None,
        dt_bias: Any = None, initial_states: Any = None, return_final_states: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert (z, dt_bias, return_final_states) == (None, None, True)
        k, q = (v.repeat_interleave(x.shape[2] // B.shape[2], 2) for v in (B, C))
        v = x * dt[..., None]
        S = x.new_zeros(len(x), *x.shape[2:], B.shape[-1]) if initial_states is None else initial_states
        y, S = recurrence(q, k, v, dt * A, S, v)
        return y + D[:, None] * x, S

    expected = model.forward(tokens(3, 29))
    assert model.kernel_path == "torch-chunks"
    for module in (_mamba2_model, mamba2):
        monkeypatch.setattr(module, "ssd_kernel_for", lambda x: chunk_scan)
    assert model.kernel_path == "mamba-ssm"
    torch.testing.assert_close(model.forward(tokens(3, 29)), expected, rtol=0, atol=1e-5)
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
