"""Every mixer equals its formula written as a loop, is one function however it is fed, and costs what it says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines import convolution, hybrid, linear_attention, low_rank_attention, recurrent, s4d
from baselines._backbone import Block
from baselines._mixer import MixerConfig
from baselines._mixer_family import MixerFamily
from baselines._rotary import rotary
from baselines.registry import find
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens

SIZES: dict[str, Any] = {"hidden_size": 24, "num_layers": 2, "head_dim": 6, "intermediate_size": 40}
CONFIGS: dict[str, MixerConfig] = {
    "lstm": recurrent.Config(cell="lstm", **SIZES),
    "linear": linear_attention.Config(**SIZES),
    "linear, no positions": linear_attention.Config(rotary=False, **SIZES),
    "low rank": low_rank_attention.Config(block=8, rank=3, **SIZES),
    "long": convolution.Config(reach=12, **SIZES),
    "long, beyond the text": convolution.Config(reach=50, **SIZES),
    "short": convolution.Config(filter="short", **SIZES),
    "s4d": s4d.Config(state_size=8, **SIZES),
    "attention and ttt": hybrid.Config(mixers=["transformer", {"family": "ttt", "backbone": "transformer"}], **SIZES),
    "mamba and ttt": hybrid.Config(mixers=["mamba", {"family": "ttt", "learner": "mlp"}], backbone="mamba", **SIZES),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks shorter than the texts of these tests."""
    monkeypatch.setattr(linear_attention, "CHUNK", 8)
    monkeypatch.setattr(low_rank_attention, "GROUP", 2)
    monkeypatch.setattr(s4d, "PIECE", 8)


def built(config: MixerConfig) -> MixerFamily:
    torch.manual_seed(0)
    family: Any = find(config.family)
    return checks.disturb(family.build(config, VOCAB))


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


LENGTH, PAIRS = 32, 4 * (8 * 7 // 2) + 2 * 8 * 3
"""Of low-rank attention: pairs that a mask hides, in four blocks of 8, and of 3 projections in each of two groups."""
FFT = {"long": 3 * convolution.fft_flops(12, 12), "s4d": 2 * s4d.fft_flops(16, 16)}
NETWORK = 2 * 12 * convolution.WIDTH * (2 * convolution.BANDS + 1)
STATE = 2 * 8 * 16
UNSEEN = {
    "linear": (0, 0, 0),
    "low rank": (-3 * 4 * 24 * PAIRS, -4 * 24 * PAIRS, 4 * 24 * 3),
    "long": (3 * (18 * LENGTH * 24 + 24 * FFT["long"]) + NETWORK, 18 * LENGTH * 24 + 24 * FFT["long"], 18 * 24),
    "short": (3 * 8 * LENGTH * 24, 8 * LENGTH * 24, 8 * 24),
    "s4d": (3 * 24 * FFT["s4d"], 24 * (FFT["s4d"] - STATE), 8 * 8 * 24),
}
"""What a layer's formula has and the counter has not, in train, prefill and step: transforms, sums of taps and of
single states, the share of a step in projecting its block, the gradient of positions; less hidden pairs, a last state.
"""


@pytest.mark.parametrize("name", UNSEEN)
def test_flops_are_what_torch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s4d, "PIECE", 16)
    model = built(CONFIGS[name])
    counted = checks.counted_flops(model, LENGTH)
    for mode, unseen in zip(("train", "prefill", "step"), UNSEEN[name], strict=True):
        assert model.flops(LENGTH, mode) == counted[mode] + 2 * unseen  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", recurrent.CELLS)
def test_flops_of_cells_are_two_a_weight(cell: str) -> None:
    """The counter gives 0 for PyTorch's fused cells."""
    config = recurrent.Config(cell=cell, **SIZES)
    matrices = sum(p.numel() for p in built(config).mixers[0].parameters() if p.ndim == 2)
    assert recurrent.Cells.flops(config, 24, 7) == 7 * 2 * matrices


def test_mixers_of_other_families_cost_what_they_cost_there() -> None:
    for name in ("transformer", "ttt"):
        family: Any = find(name)
        options = {"backbone": "transformer"} if name == "ttt" else {}
        alone = family.build(family.Config(**options, **SIZES), VOCAB)
        mixed = built(hybrid.Config(mixers=[{"family": name, **options}], **SIZES))
        assert sum(p.numel() for p in mixed.model.parameters()) == sum(p.numel() for p in alone.model.parameters())
        for mode in ("train", "prefill", "step"):
            assert mixed.flops(33, mode) == alone.flops(33, mode)  # type: ignore[arg-type]


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


NUMBERS = {
    "lstm": lambda tokens: 2 * 24,
    "linear": lambda tokens: 24 * (6 + 1),
    "low rank": lambda tokens: 2 * 24 * (3 * (tokens // 8) + tokens % 8),
    "long": lambda tokens: 11 * 24 + 2 * 3 * 24,
    "short": lambda tokens: 3 * 24,
    "s4d": lambda tokens: 24 * 8,
}


@torch.no_grad()
@pytest.mark.parametrize("name", NUMBERS)
def test_the_state_is_of_the_size_that_the_family_says(name: str) -> None:
    model = built(CONFIGS[name])
    for length in (1, 8, 27):
        _, state = model.prefill(tokens(3, length))
        assert model.state_bytes(state) == 4 * 2 * 3 * NUMBERS[name](length)
        _, state = model.step(tokens(3, 1), state)
        assert model.state_bytes(state) == 4 * 2 * 3 * NUMBERS[name](length + 1)


@torch.no_grad()
def test_a_long_filter_is_made_again_after_every_change() -> None:
    mixer: Any = built(CONFIGS["long"]).mixers[0]
    first = mixer.filter(12)
    assert mixer.filter(12) is first
    for change in (lambda: mixer.filter.skip.add_(1), lambda: mixer.filter.double()):
        change()
        torch.testing.assert_close(mixer.filter(12), mixer.filter._make(12), rtol=0, atol=0)
    assert mixer.filter(12).dtype == torch.float64


def test_memory_of_a_long_text_is_bounded() -> None:
    """Low-rank attention holds scores of `GROUP` blocks at a time, a long filter transforms pieces of its reach."""
    for name, module, attribute in (
        ("low rank", low_rank_attention.LowRankAttention, "_group"),
        ("long", convolution, "fft_conv"),
        ("s4d", s4d, "fft_conv"),
    ):
        sizes: list[int] = []
        original = getattr(module, attribute)

        def spy(*inputs: Any, original: Any = original, sizes: list[int] = sizes) -> Any:
            result = original(*inputs)
            sizes.append(result.numel())
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, attribute, spy)
            built(CONFIGS[name]).forward(tokens(1, 200))
        assert max(sizes) <= 24 * 16


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
