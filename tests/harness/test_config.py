"""Every shipped config composes, says all its keys, and runs in smoke size."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pyarrow import parquet

from baselines.config import SizeConfig
from baselines.registry import find
from harness.config import RunConfig, register_schema, to_run_config
from harness.config_errors import CONF
from harness.data.config import DataConfig
from harness.measure.config import MeasureConfig
from harness.run import run
from harness.runtime import RuntimeConfig
from harness.train.config import TrainConfig
from tests.data.corpora import bpe

SCHEMAS = {
    "size": SizeConfig, "data": DataConfig, "train": TrainConfig, "measure": MeasureConfig, "runtime": RuntimeConfig,
}  # fmt: skip
EXPERIMENTS = {f"experiment={path.stem}" for path in CONF.glob("experiment/*.yaml")}
HERE = {f"experiment={name}" for name in ("quickstart", "none", "zoo", "audio")}
NOT_RUN = {
    "runtime=gpu",
    "scale=paper",
    "data=pile",
    "data=books",
    *(EXPERIMENTS - HERE),
    *(f"train={name}" for name in ("gpu_hour", "125m", "350m", "760m", "1.3b")),
    *(f"size={size}" for size in ("2m", "10m", "30m", "125m", "350m", "760m", "1.3b")),
}
"""Needs a GPU, a network, or more seconds than a test has; `test_experiments.py` runs the other experiments and
composes the recipes, `test_tuning.py` runs `tune`, `test_budget.py` fits the sizes."""
OPTIONS = [f"{path.parent.name}={path.stem}" for path in sorted(CONF.glob("*/*.yaml"))]

RUN: set[str] = set()
"""Hashes of the configs that have been run in this process."""


def composed(overrides: list[str]) -> RunConfig:
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides)
    OmegaConf.resolve(config)
    return to_run_config(config)


def paths_for(option: str, folder: Path) -> list[str]:
    """What an option cannot do without."""
    text = "one two three four five six seven eight nine ten " * 8
    if option == "data=folder":
        for i in range(20):
            (folder / f"{i}.txt").write_text(f"{i} {text}")
        return [f"data.path={folder}", "data.test_fraction=0.3"]
    if option == "data=jsonl":
        (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": f"{i} {text}"}) for i in range(20)))
        return [f"data.path={folder / 'a.jsonl'}", "data.test_fraction=0.3"]
    if option == "data=hf":  # with a tokenizer and packed: all that differs from bytes, in one run
        pytest.importorskip("datasets", reason="datasets is not installed")
        bpe().save(str(folder / "tokenizer.json"))
        rows = [{"text": f"{i} {text * 4}"} for i in range(20)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
        return [
            f"data.path={folder / 'a.parquet'}", f"data.tokenizer={folder / 'tokenizer.json'}", "data.pack=true",
            "data.test_fraction=0.3", "measure.conventions=[position,fixed_target,window]",
        ]  # fmt: skip
    if option == "data=audio":
        soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
        for i in range(20):
            soundfile.write(folder / f"{i}.wav", np.random.default_rng(i).uniform(-1, 1, 600), 8000)
        return [f"data.path={folder}", "data.test_fraction=0.3"]
    if option in ("data=speech", "experiment=audio") and shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    return []


def listed(option: str) -> str:
    return f"model=[{option.removeprefix('model=')}]" if option.startswith("model=") else option


@pytest.mark.parametrize("group", SCHEMAS)
def test_the_first_yaml_of_a_group_lists_every_key(group: str) -> None:
    keys = {field.name for field in dataclasses.fields(SCHEMAS[group])}
    for path in (CONF / group).glob("*.yaml"):
        raw: Any = OmegaConf.to_container(OmegaConf.load(path))
        if "@package _global_" in path.read_text():
            assert set(raw) <= {"defaults", group} | {field.name for field in dataclasses.fields(RunConfig)}
            raw = raw.get(group, {}) | {"defaults": []}
        assert set(raw) - {"defaults"} <= keys
        if "defaults" not in raw:
            assert set(raw) == keys, f"{path} leaves out {keys - set(raw)}"


@pytest.mark.parametrize("path", sorted((CONF / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_model_yaml_lists_every_option_of_its_family(path: Path) -> None:
    raw: Any = OmegaConf.to_container(OmegaConf.load(path))
    ((name, options),) = raw.items()
    assert name == path.stem
    assert set(options) == {field.name for field in dataclasses.fields(find(options["family"]).Config)}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes(option: str, tmp_path: Path) -> None:
    composed([listed(option), *paths_for(option, tmp_path)])


def test_the_zoo_leaves_no_family_out() -> None:
    models = {name for name, family in composed(["experiment=zoo"]).model.items() if find(family.family).trains}
    assert models >= {
        option.removeprefix("model=")
        for option in OPTIONS
        if option.startswith("model=") and find(composed([listed(option)]).model[option[6:]].family).trains
    }


@pytest.mark.parametrize("option", [o for o in OPTIONS if o not in NOT_RUN and not o.startswith("model=")])
def test_every_option_runs_in_smoke_size(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Two experiments run models of their own: the main job, and the zoo, which holds every model."""
    monkeypatch.chdir(tmp_path)
    drawn = option.startswith("experiment=")
    if not drawn:
        monkeypatch.setattr("harness.run.report", lambda folder, console, allow_unlike: folder)
    elif option != "experiment=quickstart":
        request.getfixturevalue("bare_figures")
    models = [] if option in ("experiment=quickstart", "experiment=zoo") else ["model=[transformer]"]
    config = composed(["debug=smoke", option, *models, *paths_for(option, tmp_path)])
    if config.hash in RUN:  # options that are the defaults make the same run
        return
    assert run(config) == 0
    RUN.add(config.hash)
    (folder,) = Path("results/runs").iterdir()
    assert (folder / "report" / "report.html").exists() == drawn


def test_the_hash_leaves_out_the_seed_and_the_place(tmp_path: Path) -> None:
    base = composed([])
    shared = [
        "runtime.workers=1",
        "runtime.engine=fsdp",
        "runtime.micro_batch=1",
        "runtime.activation_checkpointing=true",
    ]
    assert composed(["seed=3", "output=elsewhere", *shared]).hash == base.hash
    assert composed(["train.tokens=500000"]).hash != base.hash
    assert composed(["model.transformer.rope_theta=5000"]).hash != base.hash
    assert composed(["output=elsewhere"]).run_folder == Path("elsewhere/runs") / f"quickstart-{base.hash}"
