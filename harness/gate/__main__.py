"""`python -m harness.gate model=…`: is a model what it claims to be? Fresh ones or checkpoints, ours or a user's own.

Takes the config of the main job, so that a model is named, sized and loaded as there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from baselines.config import FamilyConfig
    from harness.records import Check

USAGE = """\
Asks models what the main job asks before it measures: are they causal, equal however they are fed, finite, normalised?

  python -m harness.gate                                          the models of the quickstart, fresh
  python -m harness.gate model=[mamba] size=tiny                  one, small
  python -m harness.gate model=[mamba] model.mamba.checkpoint=A   a trained one
  python -m harness.gate --config-dir mine model=[my_gru]            your own

Groups and keys as in `python -m harness --help`. Exit code 1 if a check fails, 2 for a config that cannot be.
"""


def main() -> None:
    """Entry point; the exit code is 0, 1 if a check fails, 2 with one line on stderr for a config that cannot be."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return
    from harness.cli import run_hydra

    sys.exit(run_hydra("config", gate_models))


def gate_models(composed: DictConfig) -> int:
    """Gate every model of a config and print a row each check; 1 if any fails."""
    import torch
    from rich.console import Console

    from harness.config import to_run_config
    from harness.data.vocabulary import Vocabulary
    from harness.run import check_checkpoints, resolve_device, sized_models

    config = to_run_config(composed)
    device = resolve_device(config)
    check_checkpoints(config)
    torch.set_num_threads(config.runtime.threads)
    found: dict[str, list[Check] | str] = {}
    vocab_size = Vocabulary.named(config.data.tokenizer).size
    for name, family in sized_models(config, vocab_size).items():
        torch.manual_seed(config.seed)
        found[name] = _gated(family, vocab_size, device)
    Console().print(_table(found))
    for name, checks in found.items():
        if isinstance(checks, str):
            print(f"{name}: {checks}")
    passed = [not isinstance(checks, str) and all(check.passed for check in checks) for checks in found.values()]
    return 0 if all(passed) else 1


def _gated(family: FamilyConfig, vocab_size: int, device: str) -> list[Check] | str:
    """What the checks found, or why there was nothing to check."""
    import torch

    from baselines.registry import find
    from harness.gate import run_gate
    from harness.worker import one_line

    model_class = find(family.family)
    try:
        baseline = model_class.load(family) if family.checkpoint else model_class.build(family, vocab_size)
        torch.nn.Module.to(baseline.model, device)
        return run_gate(baseline).checks
    except Exception as error:
        return one_line(error)


def _table(found: dict[str, list[Check] | str]) -> object:
    """A row a check, a column a model: what was found, and its bound."""
    from rich.table import Table

    table = Table("check", *found, "bound", title="Gate", title_justify="left")
    checks = {name: {check.name: check for check in all_} for name, all_ in found.items() if not isinstance(all_, str)}
    for name in dict.fromkeys(name for by_name in checks.values() for name in by_name):
        of_models = [checks.get(model, {}).get(name) for model in found]
        bounds = {f"{check.bound:.0e}" for check in of_models if check}
        table.add_row(name, *map(_cell, of_models), " ".join(sorted(bounds)))
    return table


def _cell(check: Check | None) -> str:
    if check is None:
        return "–"
    return f"[green]✓[/green] {check.value:.1e}" if check.passed else f"[red]✗ {check.value:.1e}[/red]"


if __name__ == "__main__":
    main()
