"""Several run folders as one comparison: which models are the same one with other seeds, and which only share a name.

A model is the same in two folders if data, recipe and its own options are: then its seeds are pooled, and which other
models a folder holds does not matter. Two folders with the same seed of it, or with another recipe, are two answers to
two questions; they stand side by side under the names of their runs. Whether they may be compared at all is another
matter (`likeness`). N-gram floors of the same data are the same in every folder.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from harness.records import Record

FLOOR_FAMILY = "ngram"  # n-gram models are what any trained model must beat: reference lines, not contestants


def base(name: str) -> str:
    """The entry of `model` behind a shown name: mamba of 'mamba@0.01' and of 'mamba (other run)'."""
    return name.split(" (")[0].split("@")[0]


def config_of(folder: Path) -> dict[str, Any]:
    """The `config.yaml` of a run folder, empty if there is none."""
    path = folder / "config.yaml"
    if not path.exists():
        return {}
    found = OmegaConf.to_container(OmegaConf.load(path))
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def told_apart(found: Mapping[Path, Sequence[Record]]) -> Iterator[tuple[Path, list[Record]]]:
    """Each folder's records, models renamed 'name (run)' where folders hold different ones of a name."""
    configs = {folder: config_of(folder) for folder in found}
    labels = _labels(configs)
    clashing = _clashing(found, configs) if len(found) > 1 else set()
    for folder, records in found.items():
        yield (
            folder,
            [
                dataclasses.replace(record, model=f"{record.model} ({labels[folder]})")
                if record.model in clashing
                else record
                for record in records
            ],
        )


def _clashing(found: Mapping[Path, Sequence[Record]], configs: Mapping[Path, dict[str, Any]]) -> set[str]:
    """The models that are not one model with several seeds."""
    configured = all(configs.values())
    owner: dict[tuple[str, int], Path] = {}
    identities: dict[str, set[str]] = {}
    clashing: set[str] = set()
    for folder, records in found.items():
        for record in {(record.model, record.seed): record for record in records if record.model}.values():
            known = identities.setdefault(record.model, set())
            known.add(_identity(record, configs[folder] if configured else {}))
            first = owner.setdefault((record.model, record.seed), folder)
            if len(known) > 1 or (first != folder and record.family != FLOOR_FAMILY):
                clashing.add(record.model)
    return clashing


def _identity(record: Record, config: Mapping[str, Any]) -> str:
    """What makes a model of a folder the same as that of another: all that its training depends on but the seed."""
    data = str(record.provenance.get("data_hash"))
    if record.family == FLOOR_FAMILY:
        return data
    if not config:
        return str(record.provenance.get("config_hash"))
    own = config.get("model", {}).get(base(record.model))
    return json.dumps([own, data, config.get("train")], sort_keys=True)


def _labels(configs: Mapping[Path, dict[str, Any]]) -> dict[Path, str]:
    """A short name for each run by which all can be told apart: its own, that of its folder, or more of the path."""
    folders = [folder.resolve() for folder in configs]
    deepest = max((len(folder.parts) for folder in folders), default=0)
    candidates = [
        [config.get("name") or re.sub(r"-[0-9a-f]{8}$", "", folder.name)
         for config, folder in zip(configs.values(), folders, strict=True)],
        *(["/".join(folder.parts[-depth:]) for folder in folders] for depth in range(1, deepest + 1)),
    ]  # fmt: skip
    names = next((names for names in candidates if len(set(names)) == len(names)), candidates[-1])
    return dict(zip(configs, names, strict=True))
