"""`python -m harness.plan experiment=…`: what a run will cost, before it is run. Takes the config of the main job."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = """\
Says what a run will cost, before it is run: parameters, tokens, FLOPs, peak memory, disk, time here and GPU-hours on
named hardware, which data it needs, and what is missing on this machine. Needs no GPU and no network.

  python -m harness.plan                                       the quickstart
  python -m harness.plan experiment=tune --multirun seed=0,1,2 every run that the same line of the main job would do
  python -m harness.plan size=1.3b runtime=gpu hardware=h100   on one kind of GPU: a100, h100, h200; here: this machine
  python -m harness.plan size=125m utilisation=0.1             with the share of its peak that you have measured

Groups and keys as in `python -m harness --help`, and hardware, utilisation, seeds. Nothing is trained and nothing
written but the tokens of the corpus, which the run finds again. Exit code 2 for a config that cannot be.
"""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Read by the packages of Hugging Face when they are imported: they look for nothing but what is on this machine."""


def main() -> None:
    """Entry point; the exit code is 0, or 2 with one line on stderr for a config that cannot be."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return
    os.environ.update(OFFLINE)
    from harness.cli import run_hydra
    from harness.plan.config import PlanConfig, seeds_of

    sys.argv[1:] = seeds_of(sys.argv[1:])
    sys.exit(run_hydra("config", plan, PlanConfig))


def plan(composed: DictConfig) -> int:
    """Make the plan and print it."""
    from rich.console import Console

    from harness.plan.config import to_plan
    from harness.plan.estimate import make_plan
    from harness.plan.table import page

    config, options = to_plan(composed)
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(page(make_plan(config, options)), highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    main()
