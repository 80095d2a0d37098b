"""Mamba is transformers' Mamba, quicker, with a state that any number of tokens may continue."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from baselines import _mamba_kernels, _mamba_mixer, _mamba_model, _series
from baselines.mamba import Config, Mamba
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens

CONFIG = Config(hidden_size=20, num_layers=2, state_size=4)


@pytest.fixture(scope="module")
def model() -> Mamba:
    torch.manual_seed(0)
    return checks.disturb(Mamba.build(CONFIG, VOCAB))


@pytest.fixture(scope="module")
def stock(model: Mamba) -> transformers.MambaForCausalLM:
    other = transformers.MambaForCausalLM(model.model.config)
    other.load_state_dict(model.model.state_dict())
    return other.eval()


def padded(length: int) -> tuple[Tensor, Tensor]:
    """Two rows of tokens, the second padded on its left, and their attention mask."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, :5] = 0
    return tokens(2, length), mask


def test_logits_and_gradients_are_those_of_transformers(model: Mamba, stock: transformers.MambaForCausalLM) -> None:
    ids, mask = padded(33)
    for options in ({}, {"attention_mask": mask}):
        found = []
        for module in (model.model, stock):
            module.zero_grad()
            out = module(ids, labels=ids, use_cache=False, **options)
            out.loss.backward()
            found.append((out.logits.detach(), [p.grad for p in module.parameters()]))
        torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@torch.no_grad()
def test_generate_draws_what_transformers_draws(model: Mamba, stock: transformers.MambaForCausalLM) -> None:
    ids, mask = padded(11)
    for options in ({"do_sample": True}, {"num_beams": 3, "do_sample": False}):
        drawn = []
        for module in (model.model, stock):
            torch.manual_seed(3)
            drawn.append(module.generate(ids, attention_mask=mask, max_new_tokens=8, **options))
        torch.testing.assert_close(*drawn, rtol=0, atol=0)


def test_without_a_compiler_it_computes_the_same_in_pytorch(model: Mamba, monkeypatch: pytest.MonkeyPatch) -> None:
    found, ids = [], tokens(2, 40)
    assert model.kernel_path == "fused-cpu"
    for _ in range(2):
        model.model.zero_grad()
        out = model.model(ids, labels=ids, use_cache=False)
        out.loss.backward()
        found.append((out.logits.detach(), [p.grad for p in model.model.parameters()]))
        monkeypatch.setattr(_series, "available", lambda source: False)
    assert model.kernel_path == "torch-scan"
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)


def test_any_split_is_one_pass(model: Mamba) -> None:
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
    checks.any_split_is_one_pass(model, torch.float64, 1e-12)


def test_float64_is_kept(model: Mamba) -> None:
    checks.float64_is_kept(model)


def test_rows_are_independent(model: Mamba) -> None:
    checks.rows_are_independent(model)


def test_generate_follows_forward(model: Mamba) -> None:
    checks.generate_follows_forward(model)


def test_gradients_of_a_continuation_reach_its_own_tokens_only(model: Mamba) -> None:
    _, state = model.prefill(tokens(2, 9))
    logits, _ = model.prefill(tokens(2, 6), state, logits_to_keep=0)
    model.model.zero_grad()
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.model.parameters())


def test_a_half_precision_model_is_near_the_full_one(model: Mamba) -> None:
    half = copy.deepcopy(model)
    half.model.bfloat16()
    with torch.no_grad():
        whole, exact = half.forward(tokens(2, 30)), model.forward(tokens(2, 30))
        first, state = half.prefill(tokens(2, 30)[:, :13], logits_to_keep=0)
        second, state = half.prefill(tokens(2, 30)[:, 13:29], state, logits_to_keep=0)
        third, _ = half.step(tokens(2, 30)[:, 29:], state)
    gap = (whole - exact).abs()
    assert whole.dtype == torch.float32
    assert gap.mean() < 0.01 * exact.std()
    torch.testing.assert_close(torch.cat([first, second, third], 1), whole, rtol=0, atol=4 * float(gap.max()))


def test_it_trains_under_autocast(model: Mamba) -> None:
    exact = model.forward(tokens(2, 30))
    model.model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.forward(tokens(2, 30))
    gap = (logits - exact.detach()).abs().mean()
    gap.backward()
    assert gap < 0.01 * exact.std()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.model.parameters())


def test_saved_and_loaded_both_ways(model: Mamba, stock: transformers.MambaForCausalLM, tmp_path: Path) -> None:
    checks.stock_transformers_loads_it(model, tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    for name in ("ours", "stock"):
        loaded = Mamba.load(Config(checkpoint=str(tmp_path / name)))
        assert not loaded.model.training
        torch.testing.assert_close(loaded.forward(tokens(1, 9)), model.forward(tokens(1, 9)), rtol=0, atol=0)
    ours, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "stock"))
    assert ours == other
    assert ours["architectures"] == ["MambaForCausalLM"]


def test_loading_does_not_rescale_what_was_trained(model: Mamba, tmp_path: Path) -> None:
    model.save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "rescale_prenorm_residual": True}))
    loaded = Mamba.load(Config(checkpoint=str(tmp_path)))
    torch.testing.assert_close(loaded.forward(tokens(1, 9)), model.forward(tokens(1, 9)), rtol=0, atol=0)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"holds a 'llama' model: family mamba loads 'mamba' models"):
        Mamba.load(Config(checkpoint=str(tmp_path)))


def test_it_starts_as_the_official_one_does() -> None:
    torch.manual_seed(0)
    fresh = Mamba.build(Config(hidden_size=256, num_layers=3), VOCAB).model
    assert fresh.backbone.embeddings.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert fresh.lm_head.weight is fresh.backbone.embeddings.weight
    for mixer in (block.mixer for block in fresh.backbone.layers):
        dt = F.softplus(mixer.dt_proj.bias)
        assert 1e-3 <= dt.min() < dt.max() <= 0.1
        assert dt.log().mean().item() == pytest.approx((math.log(1e-3) + math.log(0.1)) / 2, abs=0.3)
        torch.testing.assert_close(mixer.A_log, torch.arange(1.0, 17).log().expand(512, 16))
        torch.testing.assert_close(mixer.D, torch.ones(512))
        for weight, fan_in, scale in (
            (mixer.in_proj.weight, 256, 1),
            (mixer.x_proj.weight, 512, 1),
            (mixer.conv1d.weight, 4, 1),
            (mixer.out_proj.weight, 512, 3**-0.5),
            (mixer.dt_proj.weight, 16, 1),
        ):
            bound = scale * fan_in**-0.5
            assert 0.97 * bound < weight.abs().max() <= bound


def test_flops_are_what_torch_counts_and_the_elementwise_work_that_it_does_not_see(
    model: Mamba, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mamba_model, "fits", lambda x, source: False)
    length, layers, inner, states, kernel = 19, 2, 40, 4, 4
    counted = checks.counted_flops(model, length)
    unseen = layers * (5 * inner * states + 2 * kernel * inner)
    assert model.flops(length, "prefill") == counted["prefill"] + length * unseen
    assert model.flops(length, "step") == counted["step"] + unseen
    third_product_of_the_scans_backward = layers * 2 * inner * states
    assert model.flops(length, "train") == counted["train"] + length * (
        3 * unseen - third_product_of_the_scans_backward
    )


@torch.no_grad()
def test_the_state_is_the_same_after_any_number_of_tokens(model: Mamba) -> None:
    sizes = set()
    for length in (1, 3, 50):
        _, state = model.prefill(tokens(3, length))
        sizes.add(model.state_bytes(state))
        storage = [layer.recurrent_states[0].data_ptr() for layer in state.layers]
        _, state = model.step(tokens(3, 1), state)
        sizes.add(model.state_bytes(state))
        assert [layer.recurrent_states[0].data_ptr() for layer in state.layers] == storage
    assert sizes == {4 * 3 * 2 * 40 * (4 + 4)}


def reference_kernels() -> _mamba_kernels.MambaKernels:
    """The functions of mamba-ssm and causal-conv1d after their documentation: signatures, layouts, meaning."""

    def causal_conv1d_fn(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        assert activation == "silu"
        width = weight.shape[1]
        return F.silu(F.conv1d(x, weight.unsqueeze(1), bias, padding=width - 1, groups=x.shape[1])[..., : x.shape[2]])

    def selective_state_update(
        state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, **options: Any
    ) -> Tensor:
        assert options["dt_softplus"]
        dt = F.softplus(dt + options["dt_bias"])
        state.copy_(torch.exp(dt[..., None] * A) * state + (dt * x)[..., None] * B[:, None])
        return ((state * C[:, None]).sum(-1) + D * x) * F.silu(options["z"])

    def selective_scan_fn(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
    ) -> tuple[Tensor, Tensor]:
        assert delta_softplus
        assert return_last_state
        state, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
        for t in range(u.shape[2]):
            options = {"z": z[..., t], "dt_bias": delta_bias, "dt_softplus": True}
            outputs.append(
                selective_state_update(state, u[..., t], delta[..., t], A, B[..., t], C[..., t], D, **options)
            )
        return torch.stack(outputs, -1), state

    return _mamba_kernels.MambaKernels(causal_conv1d_fn, selective_scan_fn, selective_state_update)


@torch.no_grad()
def test_mamba_ssm_kernels_are_called_as_they_are_documented(model: Mamba, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.forward(tokens(3, 29))
    assert model.kernel_path == "fused-cpu"
    for module in (_mamba_model, _mamba_mixer):
        monkeypatch.setattr(module, "kernels_for", lambda x: reference_kernels())
    assert model.kernel_path == "mamba-ssm"
    torch.testing.assert_close(model.forward(tokens(3, 29)), expected, rtol=0, atol=1e-5)
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
