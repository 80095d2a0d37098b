"""The shared backbone does the same around every mixer, keeps any state, and says what it costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import _mixer
from baselines._backbone import Block, MixerCache
from baselines._mixer_family import MixerFamily
from baselines.interface import tensors_in
from baselines.recurrent import Config, Recurrent
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens

SIZES = {"hidden_size": 24, "num_layers": 2, "head_dim": 6, "intermediate_size": 40}


@pytest.fixture(scope="module", params=_mixer.BACKBONES)
def model(request: pytest.FixtureRequest) -> MixerFamily:
    torch.manual_seed(0)
    return checks.disturb(Recurrent.build(Config(cell="gru", backbone=request.param, **SIZES), VOCAB))


def test_any_split_is_one_pass(model: MixerFamily) -> None:
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
    checks.any_split_is_one_pass(model, torch.float64, 1e-12)


def test_float64_is_kept(model: MixerFamily) -> None:
    checks.float64_is_kept(model)


def test_rows_are_independent(model: MixerFamily) -> None:
    checks.rows_are_independent(model)


def test_generate_follows_forward(model: MixerFamily) -> None:
    checks.generate_follows_forward(model)


def test_beams_take_their_states_along(model: MixerFamily) -> None:
    """Beam search with the cache finds what it finds when every token is read again."""
    prompt = tokens(2, 7)
    found = [
        model.model.generate(prompt, max_new_tokens=8, num_beams=4, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_saved_and_loaded(model: MixerFamily, tmp_path: Path) -> None:
    checks.stock_transformers_loads_it(model, tmp_path)
    loaded = Recurrent.load(Config(cell="gru", backbone=model.model.config.backbone, checkpoint=str(tmp_path)))
    assert not loaded.model.training
    torch.testing.assert_close(loaded.model.state_dict(), model.model.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"layer with cell='gru', recurrent is to have 'lstm'"):
        Recurrent.load(Config(backbone=model.model.config.backbone, checkpoint=str(tmp_path)))


def test_the_mixer_does_not_change_the_rest() -> None:
    """Models of two mixers share every weight outside the mixers, by name, shape and the cost formula."""
    outside = []
    for cell in ("lstm", "gru"):
        config = Config(cell=cell, backbone="mamba", **SIZES)
        built = Recurrent.build(config, VOCAB)
        shapes = {name: p.shape for name, p in built.model.named_parameters() if ".mixer." not in name}
        mixers = 2 * built.Mixer.count(config, 24)
        flops = built.flops(9, "prefill") - 2 * built.Mixer.flops(config, 24, 9)
        outside.append((shapes, config.parameters(VOCAB) - mixers, flops))
    assert outside[0] == outside[1]


def test_without_its_mixer_a_block_is_norms_and_swiglu(model: MixerFamily) -> None:
    """The llama block by its formula, with a mixer that gives zero; the mamba block then adds its convolution alone."""
    block: Any = model.model.layers[0]
    assert isinstance(block, Block)
    h, zero = torch.randn(2, 9, 24), torch.zeros(2, 9, 24)
    handle = block.mixer.register_forward_hook(lambda *_: (zero, None))
    try:
        found, _ = block(h, None, keep=False)
    finally:
        handle.remove()
    if block.pre_conv is not None:
        normed = block.pre_conv.norm(h).transpose(1, 2)
        h = h + block.pre_conv.conv(torch.nn.functional.pad(normed, (3, 0))).transpose(1, 2)
    x = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * block.mlp_norm.weight
    mlp = block.mlp
    wanted = h + (torch.nn.functional.silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)) @ (
        mlp.down_proj.weight.T
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_cache_owns_what_it_keeps_and_no_more(model: MixerFamily) -> None:
    sizes = {model.state_bytes(model.prefill(tokens(3, n))[1]) for n in (1, 7, 40)}
    state = 4 * 3 * 24 * (1 + 3 * (model.model.config.backbone == "mamba"))
    assert sizes == {2 * state}


def test_no_gradient_goes_into_the_cache(model: MixerFamily) -> None:
    logits, cache = model.prefill(tokens(1, 5))
    assert logits.requires_grad
    assert cache.get_seq_length() == 5
    assert not any(x.requires_grad for x in tensors_in(cache))


def test_padding_is_refused(model: MixerFamily) -> None:
    mask = torch.tensor([[0, 1, 1]])
    with pytest.raises(ValueError, match="rows of one length, unpadded"):
        model.model(tokens(1, 3), attention_mask=mask)


def test_loss_is_that_of_the_next_token(model: MixerFamily) -> None:
    ids = tokens(2, 12)
    wanted = torch.nn.functional.cross_entropy(model.forward(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(model.model(ids, labels=ids).loss, wanted)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"recurrent: backbone='vit' must be one of llama, mamba"):
        Config(backbone="vit")
    with pytest.raises(ValueError, match=r"recurrent: cell='tanh' must be one of lstm, gru"):
        Config(cell="tanh")
    with pytest.raises(ValueError, match=r"family 'pretrained' has no mixer|no family 'pretrained'"):
        _mixer.mixer_of("pretrained")


@dataclasses.dataclass
class Nest:
    rows: torch.Tensor
    seen: int


def test_a_state_of_any_shape_follows_its_rows() -> None:
    rows = torch.arange(3.0)
    cache = MixerCache(2)
    cache.layers = [({"a": rows}, [rows, None]), Nest(rows, 7)]
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    wanted = torch.tensor([2.0, 2.0, 0.0])
    first, second = cache.layers
    assert all(torch.equal(found, wanted) for found in (first[0]["a"], first[1][0], second.rows))
    assert (first[1][1], second.seen) == (None, 7)
