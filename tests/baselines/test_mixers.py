"""Every mixer equals its formula written as a loop, and is one function however it is fed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines import convolution, hybrid, low_rank_attention, s4d
from baselines._backbone import Block
from baselines._mixer_family import MixerFamily
from baselines._rotary import rotary
from baselines.registry import find
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens
from tests.baselines.mixers import CONFIGS, SIZES, built, small_pieces


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch)


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def model(request: pytest.FixtureRequest) -> MixerFamily:
    return built(request.param)


def test_any_split_is_one_pass(model: MixerFamily) -> None:
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
    checks.any_split_is_one_pass(model, torch.float64, 1e-10)


def test_float64_is_kept(model: MixerFamily) -> None:
    checks.float64_is_kept(model)


@torch.no_grad()
@pytest.mark.parametrize("family", ["linear_attention", "low_rank_attention", "convolution", "s4d"])
def test_parallel_is_recurrent_at_the_shipped_settings(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text of several chunks, then steps across the end of one, against the whole, as the families are shipped."""
    monkeypatch.undo()
    module: Any = find(family)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        torch.manual_seed(0)
        mixer = module.Mixer(module.Config(**SIZES), 24)
        for parameter in mixer.parameters():
            nn.init.normal_(parameter, std=0.2)
        mixer.initialise()
        mixer.to(dtype)
        x = torch.randn(2, 1060, 24, dtype=dtype)
        whole, _ = mixer(x, None, keep=False)
        y, state = mixer(x[:, :1010], None, keep=True)
        parts = [y]
        for t in range(1010, 1060):
            y, state = mixer(x[:, t : t + 1], state, keep=True)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=bound)


def heads(x: Tensor, projection: nn.Module) -> Tensor:
    """[B, L, H] -> [B, heads, L, f]."""
    return projection(x).unflatten(-1, (-1, SIZES["head_dim"])).transpose(1, 2)


def by_formula_linear(mixer: Any, x: Tensor) -> Tensor:
    q, k = F.elu(heads(x, mixer.q_proj)) + 1, F.elu(heads(x, mixer.k_proj)) + 1
    v, places = heads(x, mixer.v_proj), torch.arange(x.shape[1])
    scores = (q @ k.mT).tril()
    turned = (rotary(q, places) @ rotary(k, places).mT).tril() if mixer.turned else scores
    return mixer.o_proj((turned @ v / scores.sum(-1, keepdim=True)).transpose(1, 2).flatten(2))


def by_formula_low_rank(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = (heads(x, projection) for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    block, ys = mixer.block, []
    for t in range(x.shape[1]):
        start = t // block * block
        places = [torch.arange(start, t + 1)]
        keys, values = [k[:, :, start : t + 1]], [v[:, :, start : t + 1]]
        for first in range(0, start, block):
            keys.append(mixer.E @ k[:, :, first : first + block])
            values.append(mixer.F @ v[:, :, first : first + block])
            places.append(torch.full((mixer.E.shape[1],), first + block - 1))
        query = rotary(q[:, :, t : t + 1], torch.tensor([t]))
        scores = query @ rotary(torch.cat(keys, 2), torch.cat(places)).mT / math.sqrt(q.shape[-1])
        ys.append(scores.softmax(-1) @ torch.cat(values, 2))
    return mixer.o_proj(torch.cat(ys, 2).transpose(1, 2).flatten(2))


def by_formula_convolution(mixer: Any, x: Tensor) -> Tensor:
    projected = mixer.in_proj(x).transpose(1, 2)
    if mixer.short is not None:
        projected = mixer.short(F.pad(projected, (2, 0)))
    q, k, v = projected.chunk(3, 1)
    taps = (mixer.taps if mixer.filter is None else mixer.filter(mixer.reach)).t()
    y = F.conv1d(F.pad(k * v, (mixer.reach - 1, 0)), taps.flip(1).unsqueeze(1), groups=len(taps))
    return mixer.out_proj((q * y).transpose(1, 2))


def by_formula_s4d(mixer: Any, x: Tensor) -> Tensor:
    a = torch.complex(-mixer.log_A_real.exp(), mixer.A_imag)
    decay = (mixer.log_dt.exp()[:, None] * a).exp()
    read, ys = torch.view_as_complex(mixer.C) * (decay - 1) / a, []
    h = torch.zeros(len(x), *a.shape, dtype=a.dtype)
    for u in x.unbind(1):
        h = decay * h + u.unsqueeze(-1)
        ys.append(2 * (read * h).sum(-1).real + mixer.D * u)
    first, second = mixer.out_proj(F.gelu(torch.stack(ys, 1))).chunk(2, -1)
    return first * second.sigmoid()


def by_formula_cells(mixer: Any, x: Tensor) -> Tensor:
    """Hochreiter & Schmidhuber's cell with a forget gate."""
    cells, (h, c), ys = mixer.cells, x.new_zeros(2, len(x), x.shape[-1]), []
    for u in x.unbind(1):
        gates = u @ cells.weight_ih_l0.T + cells.bias_ih_l0 + h @ cells.weight_hh_l0.T + cells.bias_hh_l0
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        ys.append(h)
    return mixer.out_proj(torch.stack(ys, 1))


FORMULAS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "lstm": by_formula_cells,
    "linear": by_formula_linear,
    "linear, no positions": by_formula_linear,
    "low rank": by_formula_low_rank,
    "long": by_formula_convolution,
    "long, beyond the text": by_formula_convolution,
    "short": by_formula_convolution,
    "s4d": by_formula_s4d,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_outputs_and_gradients_are_those_of_the_formula(name: str) -> None:
    made = built(CONFIGS[name])
    made.model.double()
    mixer: Any = made.mixers[0]
    x = torch.randn(2, 29, 24, dtype=torch.float64)
    weights, found = torch.randn(2, 29, 24, dtype=torch.float64), mixer(x, None, keep=False)[0]
    wanted = FORMULAS[name](mixer, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad((y * weights).sum(), list(mixer.parameters())) for y in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_attention_in_the_backbone_is_llama() -> None:
    family: Any = find("transformer")
    llama = checks.disturb(family.build(family.Config(**SIZES), VOCAB))
    mixed = built(hybrid.Config(mixers=["transformer"], **SIZES))
    names = {"embed_tokens": "embed", "self_attn": "mixer", "input_layernorm": "mixer_norm"}
    names |= {"post_attention_layernorm": "mlp_norm", "model.": ""}
    weights = {}
    for name, weight in llama.model.state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        weights[name] = weight
    weights.pop("lm_head.weight")
    mixed.model.load_state_dict(weights)
    torch.testing.assert_close(mixed.forward(tokens(2, 40)), llama.forward(tokens(2, 40)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_long_filter_is_made_again_after_every_change() -> None:
    mixer: Any = built(CONFIGS["long"]).mixers[0]
    first = mixer.filter(12)
    assert mixer.filter(12) is first
    for change in (lambda: mixer.filter.skip.add_(1), lambda: mixer.filter.double()):
        change()
        torch.testing.assert_close(mixer.filter(12), mixer.filter._make(12), rtol=0, atol=0)
    assert mixer.filter(12).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixers": []}, "mixers=\\[\\] names no family"),
        ({"mixers": [{"learner": "mlp"}]}, "an entry without a family"),
        ({"mixers": [{"family": "ttt", "lerner": "mlp"}]}, "ttt has no option lerner"),
        ({"mixers": ["perceptron"]}, "no family 'perceptron'"),
    ],
)
def test_impossible_hybrids_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hybrid.Config(**options)


def test_a_hybrid_repeats_its_list() -> None:
    config = dataclasses.replace(CONFIGS["attention and ttt"], num_layers=3)
    blocks: list[Any] = list(built(config).model.layers)
    assert [type(block.mixer).__name__ for block in blocks] == ["Attention", "TTTMixer", "Attention"]
    assert all(isinstance(block, Block) for block in blocks)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (low_rank_attention, {"rank": 9, "block": 8}),
        (convolution, {"filter": "medium"}),
        (convolution, {"reach": 1}),
        (s4d, {"state_size": 5}),
    ],
)
def test_impossible_options_are_refused(module: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{module.Config.family}: [a-z_]+="):
        module.Config(**options)
