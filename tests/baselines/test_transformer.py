"""The Transformer is transformers' Llama, sized, continued and counted as the interface promises."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from baselines import _growing_cache
from baselines._causal_attention import SOURCE
from baselines._growing_cache import RESERVE, GrowingCache
from baselines.config import SizeConfig, fit_to_size
from baselines.transformer import Config, Transformer
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens
from ttt_impl.cpu.build import library

CONFIG = Config(hidden_size=24, num_layers=2, head_dim=6, intermediate_size=40)


@pytest.fixture(scope="module", params=[None, 2], ids=["one for each", "shared"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, num_kv_heads=request.param)
    made = Transformer.build(config, VOCAB)
    assert config.parameters(VOCAB) == sum(p.numel() for p in made.model.parameters())
    return checks.disturb(made)


def test_logits_and_gradients_are_those_of_transformers(model: Transformer) -> None:
    stock = LlamaForCausalLM(LlamaConfig(**model.model.config.to_dict()))
    assert stock.config._attn_implementation == "sdpa"
    stock.load_state_dict(model.model.state_dict())
    ids, found = tokens(2, 33), []
    for llama in (model.model, stock):
        llama.zero_grad()
        out = llama(ids, labels=ids)
        out.loss.backward()
        found.append((out.logits.detach(), [p.grad for p in llama.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_any_split_is_one_pass(model: Transformer) -> None:
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
    checks.any_split_is_one_pass(model, torch.float64, 1e-12)


def test_float64_is_kept(model: Transformer) -> None:
    checks.float64_is_kept(model)


def test_rows_are_independent(model: Transformer) -> None:
    checks.rows_are_independent(model)


def test_generate_follows_forward(model: Transformer) -> None:
    checks.generate_follows_forward(model)


def test_saved_and_loaded(model: Transformer, tmp_path: Path) -> None:
    checks.stock_transformers_loads_it(model, tmp_path)
    loaded = Transformer.load(Config(checkpoint=str(tmp_path)))
    assert not loaded.model.training
    torch.testing.assert_close(loaded.forward(tokens(1, 9)), model.forward(tokens(1, 9)), rtol=0, atol=0)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"holds a 'gpt2' model: family transformer loads 'llama' models"):
        Transformer.load(Config(checkpoint=str(tmp_path)))
    with pytest.raises(ValueError, match=r"checkpoint .*nowhere: "):
        Transformer.load(Config(checkpoint=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_options_reach_the_model(tie: bool, theta: float) -> None:
    config = Config(
        hidden_size=24, num_layers=1, head_dim=6, intermediate_size=40, tie_embeddings=tie, rope_theta=theta
    )
    llama = Transformer.build(config, VOCAB).model
    assert config.parameters(VOCAB) == sum(p.numel() for p in llama.parameters())
    second_pair = llama.model.rotary_emb.inv_freq[1]
    torch.testing.assert_close(second_pair, torch.tensor(theta ** (-2 / 6)))


@pytest.mark.parametrize(
    ("parameters", "hidden_size", "num_layers", "vocab_size"),
    [(100_000, 48, 2, 256), (700_000, 128, 4, 256), (10_000_000, 320, 8, 256), (1_300_000_000, 2048, 24, 32_000)],
)
def test_sizes_are_met(parameters: int, hidden_size: int, num_layers: int, vocab_size: int) -> None:
    size = SizeConfig(parameters, 0.02, hidden_size, num_layers, hidden_size // 4)
    fitted = fit_to_size("transformer", Config(), size, vocab_size)
    assert (fitted.hidden_size, fitted.num_layers, fitted.head_dim) == (hidden_size, num_layers, hidden_size // 4)
    assert fitted.intermediate_size is not None
    assert fitted.intermediate_size % 8 == 0
    assert abs(fitted.parameters(vocab_size) / parameters - 1) < 0.02


@pytest.mark.parametrize(
    "options",
    [
        {"num_kv_heads": 0},
        {"hidden_size": 24, "head_dim": 6, "num_kv_heads": 3},
        {"num_layers": 0},
        {"head_dim": 5},
        {"hidden_size": 20, "head_dim": 8},
    ],
)
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^transformer: [a-z_]+="):
        Config(**options)


def test_flops_are_what_torch_counts_less_the_pairs_that_the_mask_hides(model: Transformer) -> None:
    eager = checks.disturb(Transformer(copy.deepcopy(model.model)))
    eager.model.set_attn_implementation("eager")
    assert eager.kernel_path == "eager"
    length = 19
    counted, hidden = checks.counted_flops(eager, length), 4 * 24 * 2 * (length * (length - 1) // 2)
    seen = {"train": counted["train"] - 3 * hidden, "prefill": counted["prefill"] - hidden, "step": counted["step"]}
    for mode, flops in seen.items():  # transformers before 5.23 makes the rotary angles by a product, 2e-4 of the whole
        assert eager.flops(length, mode) == pytest.approx(flops, rel=3e-4)


@torch.no_grad()
def test_the_kernel_path_is_the_attention_that_ran(model: Transformer) -> None:
    ids = tokens(2, 20)
    _, state = model.prefill(ids)
    assert model.kernel_path == ("fused-cpu" if library(SOURCE) else "sdpa")
    model.step(ids[:, :1], state)
    assert model.kernel_path == "sdpa"
    with torch.autocast("cpu", torch.bfloat16):
        model.forward(ids)
    assert model.kernel_path == "sdpa"


@torch.no_grad()
def test_padding_and_tokens_after_a_cache_are_masked_as_in_transformers(model: Transformer) -> None:
    stock = LlamaForCausalLM(LlamaConfig(**model.model.config.to_dict())).eval()
    stock.load_state_dict(model.model.state_dict())
    ids, padding = tokens(2, 30), torch.ones(2, 30, dtype=torch.long)
    padding[0, :4] = 0
    found = []
    for llama in (model.model, stock):
        padded = llama(ids, attention_mask=padding).logits[:, 4:]
        cache = DynamicCache(config=llama.config)
        llama(ids[:, :12], past_key_values=cache, attention_mask=padding[:, :12])
        more = llama(ids[:, 12:], past_key_values=cache, attention_mask=padding).logits
        cache = DynamicCache(config=llama.config)
        llama(ids[:, :12], past_key_values=cache)
        found.append((padded, more, llama(ids[:, 12:], past_key_values=cache).logits))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_state_is_keys_and_values_and_after_steps_room_for_some_more(model: Transformer) -> None:
    token = 2 * 4 * 3 * 6 * model.model.config.num_key_value_heads * 2
    for length in (5, 50):
        _, state = model.prefill(tokens(3, length))
        assert model.state_bytes(state) == token * length
        _, state = model.prefill(tokens(3, 7), state)
        assert model.state_bytes(state) == token * (length + 7)
        for _ in range(2):
            _, state = model.step(tokens(3, 1), state)
            assert model.state_bytes(state) == token * (length + 8 + RESERVE)


@torch.no_grad()
def test_steps_move_nothing_until_the_room_is_full(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_growing_cache, "RESERVE", 4)
    ids = tokens(2, 22)
    whole, (_, state) = model.forward(ids), model.prefill(ids[:, :3])
    places = []
    for t in range(3, 22):
        logits, state = model.step(ids[:, t : t + 1], state)
        torch.testing.assert_close(logits[:, 0], whole[:, t], rtol=0, atol=1e-6)
        places.append(state.layers[1].keys.data_ptr())
    moves = [t for t in range(1, 19) if places[t] != places[t - 1]]
    assert moves == [5, 10, 15]


@torch.no_grad()
def test_a_step_is_that_of_transformers(model: Transformer) -> None:
    sizes = {"vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "head_dim": 6}
    grouped = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, attention_bias=True)
    for ours in (model, checks.disturb(Transformer(LlamaForCausalLM(grouped)))):
        for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
            other = copy.deepcopy(ours)
            other.model.to(dtype)
            _, state = other.prefill(tokens(2, 9))
            theirs = other.model(tokens(2, 9), use_cache=True).past_key_values
            for t in range(3):
                logits, state = other.step(tokens(2, 3)[:, t : t + 1], state)
                expected = other.model(tokens(2, 3)[:, t : t + 1], past_key_values=theirs).logits
                torch.testing.assert_close(logits, expected, rtol=0, atol=bound)


@torch.no_grad()
def test_beams_and_crops_of_the_state_go_on_as_transformers_own(model: Transformer) -> None:
    caches = [GrowingCache(2), DynamicCache(config=model.model.config)]
    found = []
    for cache in caches:
        model.model(tokens(2, 9), past_key_values=cache)
        model.model(tokens(2, 1), past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 1]))
        model.model(tokens(2, 1), past_key_values=cache)
        cache.crop(-2)
        cache.batch_repeat_interleave(2)
        found.append(model.model(tokens(4, 3), past_key_values=cache).logits)
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_gradients_flow_through_the_state_as_through_one_pass(model: Transformer) -> None:
    model, ids, found = copy.deepcopy(model), tokens(2, 12), []
    model.model.double()
    for cut in (None, 7):
        model.model.zero_grad()
        _, state = model.prefill(ids[:, :cut]) if cut else (None, None)
        logits, state = model.prefill(ids[:, cut or 0 : 11], state, logits_to_keep=0)
        last, _ = model.step(ids[:, 11:], state)
        torch.cat([logits, last], 1)[:, -5:].square().sum().backward()
        found.append([p.grad for p in model.model.parameters()])
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@torch.no_grad()
def test_it_scores_far_beyond_any_training_length(model: Transformer) -> None:
    loss = model.score(tokens(1, 3000), segment=700)
    assert loss.shape == (1, 2999)
    torch.testing.assert_close(loss, model.score(tokens(1, 3000), segment=3000), rtol=0, atol=1e-4)
