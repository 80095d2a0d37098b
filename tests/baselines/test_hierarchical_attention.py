"""Hierarchical attention against its definition, a token at a time: every token of the past covered exactly once."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from baselines._rotary import rotary
from baselines.hierarchical_attention import Config, HierarchicalAttention, HierarchicalAttentionModel
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens

SIZES = {"hidden_size": 24, "num_layers": 2, "head_dim": 6, "intermediate_size": 40}


@pytest.fixture(scope="module", params=[(4, 2), (2, 4), (4, 0)], ids=str)
def model(request: pytest.FixtureRequest) -> HierarchicalAttentionModel:
    torch.manual_seed(0)
    size, levels = request.param
    return checks.disturb(HierarchicalAttentionModel.build(Config(block_size=size, levels=levels, **SIZES), VOCAB))


def cover(i: int, size: int, levels: int) -> list[tuple[int, int, int]]:
    """(level, first token, token after the last) of all that token i reads, found by walking back from its block.

    Each level takes blocks of the level below, of S 2^(l - 1) tokens, until a block of its own begins; at least one.
    """
    border = max(0, (i // size - 1) * size)
    cells = [(0, j, j + 1) for j in range(border, i + 1)]
    for level in range(1, levels + 1):
        if border == 0:
            break
        step, whole = size << (level - 1), size << level
        begin = border - step
        if begin % whole:
            begin -= step
        cells += [(level, j, j + (1 << level)) for j in range(begin, border, 1 << level)]
        border = begin
    return cells


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 3, 37, 64])
def test_it_is_its_definition(model: HierarchicalAttentionModel, length: int) -> None:
    mixer = copy.deepcopy(model.mixers[0]).double()
    assert isinstance(mixer, HierarchicalAttention)
    size, levels = mixer.options.block_size, mixer.options.levels
    x = torch.randn(1, length, 24, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    q, k, v = (p(x).unflatten(-1, (4, 6)).transpose(1, 2) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    q, k = (rotary(part, torch.arange(length)) for part in (q, k))
    expected = torch.zeros_like(q)
    for i in range(length):
        cells = cover(i, size, levels)
        keys, values = (torch.stack([part[:, :, a:b].mean(2) for _, a, b in cells], 2) for part in (k, v))
        weight = torch.tensor([level * math.log(2) for level, _, _ in cells], dtype=torch.float64)
        scores = (q[:, :, i : i + 1] @ keys.mT) * 6**-0.5 + weight
        expected[:, :, i] = (scores.softmax(-1) @ values).squeeze(2)
    torch.testing.assert_close(
        mixer(x, None, False)[0], mixer.o_proj(expected.transpose(1, 2).flatten(2)), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("size", "levels"), [(4, 2), (16, 3)])
def test_the_past_is_covered_once_and_as_far_back_as_is_said(size: int, levels: int) -> None:
    for i in range(3 * size << levels):
        read = sorted(j for _, a, b in cover(i, size, levels) for j in range(a, b))
        assert read == list(range(read[0], i + 1))
        assert read[0] == 0 or size << levels <= i + 1 - read[0] <= (2 * size << levels)


def test_any_split_is_one_pass(model: HierarchicalAttentionModel) -> None:
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
    checks.any_split_is_one_pass(model, torch.float64, 1e-12)


def test_float64_is_kept(model: HierarchicalAttentionModel) -> None:
    checks.float64_is_kept(model)


@torch.no_grad()
def test_the_state_does_not_grow(model: HierarchicalAttentionModel) -> None:
    options = model.mixers[0].options  # type: ignore[attr-defined]
    for length in (1, 5, 50):
        _, state = model.prefill(tokens(3, length))
        assert model.state_bytes(state) == 2 * 4 * 3 * 24 * 2 * 2 * options.block_size * (options.levels + 1)


def test_flops_are_what_torch_counts(model: HierarchicalAttentionModel) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        counted = checks.counted_flops(model, 19)
    for mode in ("prefill", "step", "train"):
        assert model.flops(19, mode) == counted[mode]  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"block_size": 12}, {"block_size": 1}, {"levels": -1}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^hierarchical_attention: [a-z_]+="):
        Config(**options)
