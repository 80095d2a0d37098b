"""The command line: help at once, everything else through Hydra, and every user error as one line with exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Entry point of `python -m harness` and of the console script `ttt-bench`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        from harness.help import help_text

        print(help_text())
        return
    sys.exit(run_hydra("config", _compare))


def _compare(composed: DictConfig) -> int:
    """The main job."""
    from harness.worker import server_context

    server_context()  # it imports torch and transformers while this process does
    from harness.config import to_run_config

    config = to_run_config(composed)
    from harness.run import run

    return run(config)


class JobFailed(Exception):
    """What a job that Hydra's launcher runs in another process tells this one: its exit code, and why."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


def run_hydra(primary: str, work: Callable[[DictConfig], int], schema: type | None = None) -> int:
    """Compose the primary config of that name for every job of this command line and do `work`; the worst exit code.

    `schema` is the dataclass of its keys (None: that of the main job).
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from harness.config import register_schema
    from harness.config_errors import CONF, explain

    register_schema(schema)
    sys.argv[1:] = flags_first(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"
    exit_codes, here = [0], os.getpid()

    def job(composed: DictConfig) -> None:
        OmegaConf.resolve(composed)
        code, message = 2, ""
        try:
            code = work(composed)
        except ValueError as error:
            message = f"error: {error}"
        if code and os.getpid() != here:
            raise JobFailed(code, message)
        if message:
            print(message, file=sys.stderr)
        exit_codes.append(code)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=primary)(job)()
    except JobFailed as failed:
        print(failed.message or "error: a job of the sweep failed; its output says why", file=sys.stderr)
        return failed.code
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    return max(exit_codes)


def flags_first(arguments: list[str]) -> list[str]:
    """Flags before overrides: Hydra's parser takes overrides in one run only, users write them anywhere."""
    overrides = [a for a in arguments if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    return [a for a in arguments if a not in overrides] + overrides
