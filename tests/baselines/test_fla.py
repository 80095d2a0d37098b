"""flash-linear-attention where it cannot run says so; where it can, it is sized and built through its own configs."""

from __future__ import annotations

import sys

import pytest
import torch

from baselines import fla
from baselines.config import SizeConfig, Unsupported, fit_to_size
from baselines.fla import Config, Fla
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens


def test_without_cuda_or_the_package_it_is_unsupported_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for call in (
        lambda: fit_to_size("fla", Config(), SizeConfig(), VOCAB),
        lambda: Config().parameters(VOCAB),
        lambda: Fla.build(Config(), VOCAB),
        lambda: Fla.load(Config(checkpoint="x")),
    ):
        with pytest.raises(Unsupported, match="runs on CUDA alone"):
            call()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "fla", None)
    with pytest.raises(Unsupported, match=r"not installed: pip install 'ttt-bench\[fla\]'"):
        fit_to_size("fla", Config(hidden_size=64), SizeConfig(), VOCAB)


@pytest.fixture
def llama_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's way through transformers' Auto classes, asked with an architecture that runs anywhere."""
    monkeypatch.setattr(fla, "require", lambda: None)


@pytest.mark.usefixtures("llama_in_its_place")
def test_it_is_sized_by_counting_and_built_through_the_auto_classes() -> None:
    config = Config(architecture="llama", options={"num_attention_heads": 4})
    fitted = fit_to_size("fla", config, SizeConfig(parameters=100_000, hidden_size=32, num_layers=2, head_dim=8), VOCAB)
    model = Fla.build(fitted, VOCAB)
    assert fitted.parameters(VOCAB) == model.model.num_parameters()
    assert abs(fitted.parameters(VOCAB) / 100_000 - 1) < 0.02
    assert model.model.config.num_attention_heads == 4
    model.model.set_attn_implementation("eager")
    counted, length = checks.counted_flops(model, 19), 19
    scores = 2 * 4 * 32 * length * length
    assert model.flops(length, "prefill") == pytest.approx(counted["prefill"] - scores, rel=2e-3)
    assert model.flops(length, "train") == pytest.approx(counted["train"] - 3 * scores, rel=2e-3)
    assert model.forward(tokens(2, 5)).shape == (2, 5, VOCAB)


@pytest.mark.usefixtures("llama_in_its_place")
def test_an_architecture_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"^fla: architecture='gala': flash-linear-attention has no such model$"):
        Fla.build(Config(architecture="gala", hidden_size=32, head_dim=8, num_layers=1, intermediate_size=8), VOCAB)
