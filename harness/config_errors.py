"""What Hydra and OmegaConf say when a command line is wrong, made into one line with the key and the valid choices."""

from __future__ import annotations

import re
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).resolve().parent.parent / "conf"


def explain(error: HydraException | OmegaConfBaseException) -> str:
    """One line for the user, from an exception of composition."""
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not a valid override; write key=value, or group=option"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    while isinstance(cause, Exception) and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return explain_key(cause)
    return _first_line(error)


def explain_key(error: OmegaConfBaseException, where: str = "") -> str:
    """One line about a key that does not exist or a value of the wrong type; `where` goes before the key."""
    key = where + (error.full_key or str(error.key))
    text = str(error).splitlines()[0]
    if "not in" in text and isinstance(error.parent_node, DictConfig):
        choices = sorted(str(name) for name in error.parent_node if name != "hydra")
        return f"{key}: no such key; choose one of {', '.join(choices)}"
    return f"{key}: {text}"


def _missing_option(error: MissingConfigException) -> str:
    match = re.search(r"Could not (?:find|load) '([^/']+)/([^']+)'", str(error))
    if match is None:
        return _first_line(error)
    group, option = match.groups()
    if group == "hydra" and option.startswith("launcher/"):
        return f"hydra/launcher={option.removeprefix('launcher/')}: not installed; pip install 'ttt-bench[sweep]'"
    choices = error.options or [path.stem for path in sorted((CONF / group).glob("*.yaml"))]
    return f"{group}={option}: no such option; choose one of {', '.join(choices)}"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
