"""Mamba meets a budget with the shape it is given, and counts its parameters right."""

from __future__ import annotations

import pytest

from baselines import transformer
from baselines.config import SizeConfig, fit_to_size
from baselines.mamba import Config, Mamba
from tests.baselines.checks import VOCAB


@pytest.mark.parametrize(
    ("parameters", "hidden_size", "num_layers", "vocab_size"),
    [
        (60_000, 32, 2, 256),
        (100_000, 48, 2, 256),
        (400_000, 96, 4, 256),
        (700_000, 128, 4, 256),
        (2_000_000, 192, 6, 256),
        (10_000_000, 320, 8, 256),
        (125_000_000, 768, 12, 32_000),
        (350_000_000, 1024, 24, 32_000),
        (760_000_000, 1536, 24, 32_000),
        (1_300_000_000, 2048, 24, 32_000),
    ],
)
def test_sizes_are_met(parameters: int, hidden_size: int, num_layers: int, vocab_size: int) -> None:
    fitted = fit_to_size("mamba", Config(), SizeConfig(parameters, 0.02, hidden_size, num_layers, 16), vocab_size)
    assert fitted.hidden_size is not None
    assert fitted.num_layers is not None
    assert 0.75 <= fitted.hidden_size / hidden_size <= 1.25
    assert abs(fitted.num_layers - 2 * num_layers) <= max(3, num_layers // 4)
    assert hidden_size < 256 or fitted.hidden_size % 8 == 0


@pytest.mark.parametrize("num_layers", [2, 3, 4, 6, 8, 12])
def test_a_usual_transformer_has_a_mamba_of_its_size(num_layers: int) -> None:
    for intermediate_size in range(256, 513, 32):
        shape = {"hidden_size": 128, "num_layers": num_layers, "head_dim": 32, "intermediate_size": intermediate_size}
        parameters = transformer.Config(**shape).parameters(256)
        fit_to_size("mamba", Config(), SizeConfig(parameters, 0.02, 128, num_layers, 32), 256)


def test_a_width_or_depth_that_is_given_is_kept() -> None:
    size = SizeConfig(700_000, 0.1, 128, 4, 32)
    assert fit_to_size("mamba", Config(num_layers=8), size, 256).num_layers == 8
    assert fit_to_size("mamba", Config(hidden_size=112), size, 256).hidden_size == 112


@pytest.mark.parametrize(
    "options", [{}, {"state_size": 8, "expand": 3, "conv_kernel": 3, "time_step_rank": 5}, {"hidden_size": 33}]
)
def test_the_parameter_formula_counts_what_is_built(options: dict[str, int]) -> None:
    config = Config(**{"hidden_size": 24, "num_layers": 2, **options})
    assert config.parameters(VOCAB) == sum(p.numel() for p in Mamba.build(config, VOCAB).model.parameters())


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^mamba: state_size=0 must be at least 1$"):
        Config(state_size=0)
