"""Budgets: every model meets every size, whatever is held equal, and what cannot be met is refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from baselines import config
from baselines.budget import Budget, nearest_rising, series_of_shapes, state_bytes, train_flops
from baselines.config import FamilyConfig, SizeConfig
from baselines.registry import find
from harness.config_errors import CONF

UNSUPPORTED: Any = getattr(config, "Unsupported", ())
SMALL = SizeConfig(parameters=60_000, tolerance=0.02, hidden_size=32, num_layers=2, head_dim=16)
MILLIONS = {
    ("125m", "linear", "mamba"): 110.42, ("125m", "mlp", "transformer"): 114.44,
    ("350m", "linear", "transformer"): 337.29, ("760m", "mlp", "mamba"): 758.53, ("1.3b", "linear", "mamba"): 1285.64,
}  # fmt: skip
"""The paper's models with the Llama tokenizer's 32,000 tokens, counted on the official code's shapes."""


def size(name: str) -> SizeConfig:
    raw: Any = OmegaConf.to_container(OmegaConf.load(CONF / "size" / f"{name}.yaml"))
    return SizeConfig(**raw)


def options(path: str) -> FamilyConfig:
    raw: Any = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{path}.yaml"))
    (given,) = raw.values()
    return find(given["family"]).Config(**given)


@pytest.mark.parametrize("budget", [path.stem for path in (CONF / "size").glob("*.yaml")])
@pytest.mark.parametrize("model", [path.stem for path in (CONF / "model").glob("*.yaml")])
def test_every_model_meets_every_size(model: str, budget: str) -> None:
    target, family = dataclasses.replace(size(budget), match="parameters"), options(model)
    if hasattr(family, "path"):
        pytest.skip("it loads models and trains none")
    try:
        found = Budget(target, 256, 256).fit(model, family).parameters(256)
    except UNSUPPORTED as error:
        pytest.skip(str(error))
    assert abs(found / target.parameters - 1) <= target.tolerance


@pytest.mark.parametrize(("budget", "learner", "backbone"), MILLIONS)
def test_the_paper_s_sizes_are_exact(budget: str, learner: str, backbone: str) -> None:
    family = dataclasses.replace(options("ttt_linear"), learner=learner, backbone=backbone)  # type: ignore[call-arg]
    found = Budget(size(budget), 32_000, 2048).fit("ttt", family).parameters(32_000)
    assert abs(found / 1e6 - MILLIONS[budget, learner, backbone]) < 0.01


@pytest.mark.parametrize(("budget", "shape"), [("125m", (768, 24)), ("1.3b", (2048, 48))])
def test_mamba_has_its_published_shapes(budget: str, shape: tuple[int, int]) -> None:
    found: Any = Budget(size(budget), 256, 2048).fit("mamba", options("mamba"))
    assert (found.hidden_size, found.num_layers) == shape


@pytest.mark.parametrize("model", ["mamba", "ttt_linear", "ttt_mlp"])
def test_training_flops_are_those_of_the_first_model(model: str) -> None:
    budget = Budget(dataclasses.replace(SMALL, match="train_flops"), 256, 64)
    first = budget.fit("transformer", options("transformer"))
    fitted = budget.fit(model, options(model))
    assert abs(first.parameters(256) / SMALL.parameters - 1) <= SMALL.tolerance
    built = [find(at.family).build(at, 256).flops(64, "train") for at in (first, fitted)]
    assert abs(built[1] / built[0] - 1) <= SMALL.tolerance
    assert train_flops(first, 256, 64) == built[0] // 64


def test_bytes_of_state_are_those_of_the_first_model() -> None:
    budget = Budget(dataclasses.replace(SMALL, match="state_bytes", tolerance=0.1), 256, 32)
    first = budget.fit("ttt_linear", options("ttt_linear"))
    fitted: Any = budget.fit("transformer", options("transformer"))
    built = find("transformer").build(fitted, 256)
    with torch.inference_mode():
        counted = built.state_bytes(built.prefill(torch.ones(1, 32, dtype=torch.long))[1])
    assert counted >= 2 * 4 * 32 * fitted.hidden_size * fitted.num_layers  # keys and values
    assert abs(counted / state_bytes(first, 256, 32) - 1) <= 0.1


def test_what_cannot_be_met_is_refused() -> None:
    budget = Budget(dataclasses.replace(SMALL, match="train_flops"), 256, 64)
    budget.fit("mamba", options("mamba"))
    wide = dataclasses.replace(options("transformer"), hidden_size=128)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"model.t: the nearest setting has [\d,]+ training FLOPs a token, \+\d+"):
        budget.fit("t", wide)
    with pytest.raises(ValueError, match=r"size\.match is 'flops': choose one of parameters, train_flops, state_bytes"):
        dataclasses.replace(SMALL, match="flops")
    with pytest.raises(ValueError, match=r"size\.match=shape needs size\.intermediate_size"):
        dataclasses.replace(SMALL, match="shape")


def test_bisection_finds_the_nearest_with_few_looks() -> None:
    looks: list[int] = []

    def cost(candidate: Any) -> int:
        looks.append(candidate)
        return candidate * candidate

    numbers: Any = list(range(1, 1001))
    for target, nearest in ((0, 1), (99 * 99 + 90, 99), (99 * 99 + 110, 100), (10**7, 1000)):
        assert nearest_rising(numbers, cost, target) == nearest
    assert len(looks) < 4 * 13


def test_shapes_begin_with_the_size_s_own_and_keep_heads_whole() -> None:
    found = list(series_of_shapes(SMALL))
    assert SMALL in found[0]
    assert all(shape.hidden_size % shape.head_dim == 0 for shapes in found for shape in shapes)
    assert {shapes[0].head_dim for shapes in found} == {8, 16, 32, 64}
    assert [shapes[0].num_layers for shapes in found] == [2] * 4 + [1] * 4 + [3] * 4
    assert all([s.hidden_size for s in shapes] == sorted(s.hidden_size for s in shapes) for shapes in found)
