"""`python -m harness.recall`: train small models on a made task of recall, and draw what they recall.

Overrides as for the main job: model=[transformer,mamba2] task=induction sizes=[8,16] model.mamba2.state_size=32.
Rows that are there are not measured again.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from baselines.config import FamilyConfig, SizeConfig
    from harness.recall.config import RecallConfig


def main() -> int:
    """Exit code 0, or 2 with one line on stderr."""
    from harness.cli import run_hydra
    from harness.recall.config import register_schema

    register_schema()
    return run_hydra("recall", _composed)


def _composed(composed: DictConfig) -> int:
    from harness.recall.config import to_recall_config

    return run(to_recall_config(composed))


def run(config: RecallConfig) -> int:
    """Measure what is missing, several models at a time, and draw the figure."""
    from baselines.config import fit_to_size
    from harness.processes import die_with_parent
    from harness.provenance import provenance
    from harness.recall.experiment import measure
    from harness.recall.figure import draw, recalled
    from harness.recall.tasks import VOCAB_SIZE
    from harness.records import Conditions, Recall, Record, RecordStore

    folder = Path(config.output) / config.task
    folder.mkdir(parents=True, exist_ok=True)
    store = RecordStore(folder)
    fitted = {
        name: fit_to_size(name, shaped(family, config.size), config.size, VOCAB_SIZE)
        for name, family in config.model.items()
    }
    config.model = fitted
    digests = {name: _digest(config, name) for name in fitted}
    there = {(row.model, row.provenance["config_hash"]) for row in store}
    missing = {name: family for name, family in fitted.items() if (name, digests[name]) not in there}
    workers = config.workers or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), die_with_parent) as pool:
        waiting = {pool.submit(measure, config, family): name for name, family in missing.items()}
        for done in as_completed(waiting):
            name, values = waiting[done], done.result()
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            origin = provenance(digests[name], "", config.seed)
            row = Record(
                Recall.kind, name, fitted[name].family, config.seed, values=values, conditions=Conditions(),
                provenance=origin, time=now,
            )  # fmt: skip
            store.append(row)
            print(f"{name:>24}  {_percent(values.accuracy)}  {values.cpu_seconds:.0f} CPU s", flush=True)
    print(f"{config.task}, accuracy in percent at sizes {', '.join(map(str, config.sizes))}:")
    for name, found in recalled(folder).items():
        print(f"{name:>24}  {_percent(found[0].accuracy)}")
    print(f"figure: {draw(folder)}")
    return 0


def shaped(family: FamilyConfig, size: SizeConfig) -> FamilyConfig:
    """`family` with the width and depth of `size` where it leaves them open: recall is about layers, not parameters."""
    from baselines.config import completed

    names = [name for name in ("hidden_size", "num_layers", "head_dim") if hasattr(family, name)]
    return completed(family, **{name: getattr(size, name) for name in names})


def _digest(config: RecallConfig, name: str) -> str:
    """What makes this model's row this one: the experiment with that model alone."""
    import dataclasses

    identity = config.identity() | {"model": dataclasses.asdict(config.model[name])}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def _percent(accuracies: list[float]) -> str:
    return " ".join(f"{100 * value:5.1f}" for value in accuracies)


if __name__ == "__main__":
    sys.exit(main())
