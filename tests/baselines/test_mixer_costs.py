"""What a mixer says it costs is what torch counts, what lies in memory, and what other families say of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baselines import convolution, hybrid, low_rank_attention, recurrent, s4d
from baselines.registry import find
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens
from tests.baselines.mixers import CONFIGS, SIZES, built, small_pieces


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch)


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
