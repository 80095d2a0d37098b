"""Every experiment composes at all three scales, and does the whole job in smoke size; recipes do what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.registry import find
from harness.config import SCALES, RunConfig
from harness.config_errors import CONF, explain
from harness.data.tokenizer import byte_tokenizer
from harness.records import RecordStore
from harness.reference import load
from harness.run import run
from harness.train.config import TrainConfig
from harness.train.loop import make_optimizer
from tests.harness.test_config import composed

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SMOKED_ELSEWHERE = {"quickstart", "none", "tune", "zoo", "audio"}
"""In `test_config.py`, and `tune` in `test_tuning.py`."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the experiments of this module keep their runs, and the one corpus of them all."""
    return tmp_path_factory.mktemp("experiments") / "results"


@pytest.fixture(scope="module")
def seen() -> set[str]:
    """Models that an experiment of this module has run."""
    return set()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_at_every_scale(experiment: str) -> None:
    at = {scale: composed([f"experiment={experiment}", f"scale={scale}"]) for scale in SCALES if scale != "cpu"}
    assert {config.runtime.device for config in at.values()} == {"cuda"}
    for scale, config in at.items():
        assert config.scale == scale
        assert config.model
        assert config.train.steps >= 1


def test_the_ladder_is_the_papers_row_by_row_and_stands_beside_it() -> None:
    ladder = composed(["experiment=ladder"])
    assert ladder.reference is not None
    rows = load(ladder.reference).results["table_1"].rows
    assert [row.model for row in rows] == list(ladder.model)


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in SMOKED_ELSEWHERE])
def test_every_experiment_runs_in_smoke_size(
    experiment: str, results: Path, seen: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its models but those that an experiment before had with the same options; the report is drawn elsewhere."""
    monkeypatch.setattr("harness.run.report", lambda folder, console, allow_unlike: folder)
    smoke = ["debug=smoke", f"output={results}"]
    if experiment == "finetuned_transformer":
        base = ["experiment=books", f"folder={results}/runs/books", "~model.ttt_mlp"]
        assert run(composed([*smoke, *base, "model=[transformer]"])) == 0
    if experiment == "checkpoints":
        local_model(results.parent / "local")
        smoke.append(f"model.local.path={results.parent / 'local'}")
    config = composed([f"experiment={experiment}", f"folder={results}/{experiment}", *smoke])
    new = {name: family for name, family in config.model.items() if repr(family) not in seen}
    config.model = new or dict([*config.model.items()][:1])
    seen |= {repr(family) for family in config.model.values()}
    assert run(config) == 0
    done = {row.model for row in RecordStore(config.run_folder) if row.kind == "position"}
    assert done >= set(config.model)


def local_model(folder: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=256, intermediate_size=24, **sizes)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("size", ["125m", "350m", "760m", "1.3b"])
def test_a_size_of_the_paper_brings_its_recipe(size: str) -> None:
    """Table 3: steps and peak rates, and half a million tokens a step at any length."""
    steps, rate = {
        "125m": (4800, 3e-3), "350m": (13500, 1.5e-3), "760m": (29000, 1.25e-3), "1.3b": (50000, 1e-3),
    }[size]  # fmt: skip
    recipe = composed(["experiment=sizes", "scale=paper", f"size={size}", "train.length=8192"]).train
    assert (recipe.steps, recipe.learning_rate, recipe.tokens_per_step) == (steps, rate, 2**19)
    assert recipe.decay_all


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["scale=large"], "scale=large: no such option; choose one of cpu, gpu_hour, paper"),
        (["scale=paper", "size=10m"], "train=10m: no such option; choose one of 1.3b, 125m, 350m"),
    ],
)
def test_what_there_is_not_is_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)) as error:
        composed(["experiment=sizes", *overrides])
    assert explain(error.value).startswith(words)


def test_weight_decay_on_everything() -> None:
    family = find("linear_attention")
    sizes: dict[str, Any] = {"hidden_size": 8, "num_layers": 1, "head_dim": 4, "intermediate_size": 8}
    model = family.build(family.Config(output_norm=True, **sizes), 256).model
    decayed, exempt = make_optimizer(model, TrainConfig(decay_all=True)).param_groups
    assert not exempt["params"]
    assert {id(p) for p in decayed["params"]} == {id(p) for p in model.parameters()}


def test_the_inner_rate_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0.01 to 0.1 over the first tenth of the steps, in TTT's own model and in the shared backbone."""
    sizes: dict[str, Any] = {"hidden_size": 8, "num_layers": 1, "head_dim": 4, "intermediate_size": 8}
    ttt: dict[str, Any] = {"family": "ttt", "learner": "mlp", "base_lr_init": 0.01}
    for options in (ttt | sizes, {"family": "hybrid", "mixers": [ttt], "backbone": "mamba"} | sizes):
        family = find(options["family"])
        model = family.build(family.Config(**options), 256)
        (layer,) = [module for module in model.model.modules() if hasattr(module, "inner_lr_scale")]
        found = []
        for step in (0, 5, 10, 99):
            model.before_step(step, 100)
            found.append(layer.base_lr * layer.inner_lr_scale)
        assert found == pytest.approx([0.01, 0.055, 0.1, 0.1])


def test_training_calls_the_family_before_each_step(config: RunConfig, tmp_path: Path) -> None:
    from tests.harness.test_train import trainer

    made, called = trainer(config, tmp_path), []
    made.baseline.before_step = lambda step, steps: called.append((step, steps))
    made.run()
    assert called == [(step, made.config.steps) for step in range(made.config.steps)]


def test_a_run_goes_on_from_another(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate of next to nothing the weights stay those that the first run ended with."""
    monkeypatch.setattr("harness.run.report", lambda folder, console, allow_unlike: folder)
    config.size = dataclasses.replace(config.size, parameters=5728)
    config.measure = dataclasses.replace(config.measure, timing=False, max_length=32, conventions=["position"])
    assert run(config) == 0
    recipe = dataclasses.replace(
        config.train, init_from=str(config.run_folder), learning_rate=1e-12, final_learning_rate=0
    )
    second = dataclasses.replace(config, train=recipe)
    assert run(second) == 0
    before, after = (
        find("mine.gru").load(dataclasses.replace(c.model["gru"], checkpoint=str(folder))).model.state_dict()
        for c in (config, second)
        for folder in [c.run_folder / "seed0" / "gru" / "checkpoint"]
    )
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match=r"no trained model at .*seed1/gru/checkpoint; give the folder of a run"):
        run(dataclasses.replace(second, seed=1))
