"""Refusals in one clear line: the name, the value given, the valid choices."""

import math
from collections.abc import Sequence


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}; valid choices: {', '.join(map(repr, choices))}")


def check_integer(name: str, value: object, least: int) -> None:
    """Raise unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}; valid choices: an integer of at least {least}")


def check_number(name: str, value: object) -> None:
    """Raise unless `value` is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name}={value!r}; valid choices: a finite number of at least 0")


def check_flag(name: str, value: object) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}; valid choices: True, False")
