"""Every experiment can be planned: in smoke size as a whole, and at the paper's scale without network or corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from baselines.config import FamilyConfig
from harness.config import RunConfig
from harness.plan import estimate
from harness.plan.config import PlanOptions
from harness.plan.corpus import Corpus, corpus_of
from harness.plan.estimate import make_plan
from harness.plan.memory import Memory, memory_of
from harness.plan.table import page
from tests.harness.test_config import composed
from tests.harness.test_experiments import EXPERIMENTS

UNTRAINED = {"checkpoints", "finetuned_transformer"}
"""They need what another run or a download leaves."""


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """Corpora and memory of models that an experiment of this module has asked for."""
    return {}


@pytest.fixture
def shared(known: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is found once."""

    def corpus(config: RunConfig) -> Corpus:
        key = repr((config.data, config.train, config.measure))
        return known.setdefault(key, known.get(key) or corpus_of(config))

    def memory(family: FamilyConfig, *rest: Any) -> Memory:
        key = repr((family, *rest))
        return known.setdefault(key, known.get(key) or memory_of(family, *rest))

    monkeypatch.setattr(estimate, "corpus_of", corpus)
    monkeypatch.setattr(estimate, "memory_of", memory)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_planned_in_smoke_size(experiment: str, shared: None, tmp_path_factory: Any) -> None:
    root = tmp_path_factory.getbasetemp() / "plans"
    config = composed([f"experiment={experiment}", "debug=smoke", f"output={root}"])
    if experiment == "audio":
        config.data = composed(["debug=smoke"]).data  # what is spoken is heard elsewhere
    plan = make_plan(config, PlanOptions("h100"))
    lines = [line for line in plan.missing if not line.startswith(("no fused operators", "fla"))]
    assert bool(lines) == (experiment in UNTRAINED), lines
    for model in plan.models:
        if not model.problem:
            assert model.parameters > 40_000
            assert model.memory.training > 16 * model.parameters
            assert model.work.training_tokens == 2048 * model.work.trainings > 0
            assert 0 < model.work.scoring_flops < model.work.training_flops
    assert page(plan).renderables


def test_what_is_not_here_is_assumed_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's vocabulary, its batch too large, and a line for each name of the hub; nothing is downloaded."""
    monkeypatch.setattr(estimate, "memory_of", lambda *a: Memory(2**29, 2**30, 2**29, 2**38, 2**29, rows=256))
    monkeypatch.setattr("harness.plan.corpus.cached", lambda *a: False)
    config = composed(["experiment=mamba_recipe", "scale=paper", f"output={tmp_path}"])
    plan = make_plan(config, PlanOptions("h100"))
    assert plan.corpus.vocab_size == 50_277
    transformer = plan.models[0]
    assert transformer.parameters > 50_277 * 768 + 12 * 7e6
    assert transformer.work.scored == 10_000 * 2047
    said = " ".join(plan.missing)
    for words in ("data.tokenizer=EleutherAI/gpt-neox-20b is not in", "monology/pile-uncopyrighted lies on the hub"):
        assert said.count(words) == 1
    shown = Console(width=400)
    with shown.capture() as text:
        shown.print(page(plan))
    for words in ("a vocabulary of 50,277 tokens", "10,000 test documents", "fits 80.0 GiB: 78 (transformer)"):
        assert words in text.get()


def test_a_large_corpus_is_left_to_its_own_command(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, corpus: Path
) -> None:
    monkeypatch.setattr("harness.plan.corpus.TOKENISED_HERE", 11_999)
    found = corpus_of(config)
    assert found.train_tokens == round(0.7 * 20 * 600)
    assert "not tokenised yet: python -m harness.data" in found.problems[0]
    assert not Path(config.output, "tokens").exists()
    monkeypatch.setattr("harness.plan.corpus.TOKENISED_HERE", 12_000)
    assert corpus_of(config).train_documents
