"""The rows of `experiment=ladder` are those of the TTT paper's Table 1, and its third row is its second."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baselines.budget import Budget
from baselines.config import FamilyConfig
from baselines.interface import SequenceModel
from baselines.registry import find
from baselines.ttt import TTT, Config
from tests.baselines import checks
from tests.baselines.test_ttt import SHAPE
from tests.harness.test_config import composed
from ttt_impl.ablation import ablation_ladder

VOCAB = 256
STEPS = {
    "ttt_equivalence": "linear_attention",
    "plus_learnable_w0": "learnable_w0",
    "plus_norm_and_residual": "norm_and_residual",
    "plus_mini_batch": "mini_batch",
    "plus_learnable_eta": "learnable_eta",
    "plus_mamba_backbone": "mamba_backbone",
}
"""Row of the experiment -> row of `ttt_impl`."""
NAMES = {
    "seq_modeling_block.post_norm": "mixer.output_norm", "seq_modeling_block": "mixer", "seq_norm": "mixer_norm",
    "ffn_norm": "mlp_norm", "model.embed_tokens": "embed", "model.": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> dict[str, FamilyConfig]:
    config = composed(["experiment=ladder", "size=tiny", "train.length=64"])
    budget = Budget(config.size, VOCAB, config.train.length)
    return {name: budget.fit(name, family) for name, family in config.model.items()}


def built(family: FamilyConfig) -> SequenceModel:
    torch.manual_seed(0)
    return checks.disturb(find(family.family).build(family, VOCAB))


def test_the_rows_are_those_of_the_library(rows: dict[str, FamilyConfig]) -> None:
    assert list(rows) == ["linear_attention", "linear_attention_improved", *STEPS]
    ladder = ablation_ladder(length=64, head_dim=16)
    assert list(ladder) == list(STEPS.values())
    for name, step in STEPS.items():
        config = built(rows[name]).model.config
        assert {key: getattr(config, key) for key in ladder[step]} == ladder[step], name


def test_the_published_layer_is_the_last_row(rows: dict[str, FamilyConfig]) -> None:
    config = composed(["model=[ttt_linear]", "size=tiny"])
    (published,) = config.model.values()
    wanted = built(Budget(config.size, VOCAB, 64).fit("", published))
    assert built(rows["plus_mamba_backbone"]).model.config.to_dict() == wanted.model.config.to_dict()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_equivalent_ttt_is_linear_attention(
    rows: dict[str, FamilyConfig], dtype: torch.dtype, bound: float
) -> None:
    """Theorem 1, for whole models of the same weights; TTT turns neighbouring pairs, the other those of both halves."""
    ttt, linear = built(rows["ttt_equivalence"]), built(rows["linear_attention_improved"])
    weights: dict[str, Any] = {}
    for name, weight in ttt.model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = weight.unflatten(0, (-1, 8, 2)).transpose(1, 2).flatten(0, 2)
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if name != "lm_head.weight":
            weights[name] = weight
    linear.model.load_state_dict(weights)
    ids = torch.randint(VOCAB, (2, 64))
    found, wanted = (model.to(dtype)(ids, use_cache=False).logits for model in (ttt.model, linear.model))
    torch.testing.assert_close(found, wanted, rtol=0, atol=bound)
    assert wanted.std() > 0.01


def test_every_row_has_the_parameters_that_it_says(rows: dict[str, FamilyConfig]) -> None:
    for name, family in rows.items():
        assert family.parameters(VOCAB) == built(family).model.num_parameters(), name


@pytest.mark.parametrize("task", ["reconstruction", "next_token"])
def test_parameters_and_work_of_other_inner_tasks(task: str) -> None:
    options = Config(learner="mlp", inner_task=task, inner_bias=False, learnable_eta=False, **SHAPE)
    model, published = TTT.build(options, VOCAB), TTT.build(Config(learner="mlp", **SHAPE), VOCAB)
    assert options.parameters(VOCAB) == model.model.num_parameters()
    width, layers, heads = SHAPE["hidden_size"], SHAPE["num_layers"], SHAPE["hidden_size"] // SHAPE["head_dim"]
    spared = heads * width + (width * width if task == "reconstruction" else 0)
    assert published.flops(1, "step") - model.flops(1, "step") == 2 * layers * spared


def test_linear_attention_without_features_has_no_normaliser() -> None:
    family = find("linear_attention")
    for options, words in (
        ({"features": "identity"}, "normaliser=True needs"),
        ({"features": "exp"}, "must be one of"),
    ):
        with pytest.raises(ValueError, match=words):
            family.Config(**options)


def test_an_mlp_does_not_learn_from_zero() -> None:
    with pytest.raises(ValueError, match="an MLP never learns from W0 = 0"):
        Config(learner="mlp", learnable_w0=False)
