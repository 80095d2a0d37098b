"""Finds a family by name. There is no list to edit: a family is a module, and the modules are the list."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import baselines
from baselines.interface import SequenceModel

_NOT_FAMILIES = {"budget", "config", "interface", "registry"}


def families() -> list[str]:
    """Names of the families in `baselines/`, by file name, without importing them."""
    return sorted(
        m.name
        for m in pkgutil.iter_modules(baselines.__path__)
        if m.name not in _NOT_FAMILIES and not m.ispkg and not m.name.startswith("_")
    )


def find(family: str) -> type[SequenceModel]:
    """The `SequenceModel` subclass that the module of `family` defines.

    A bare name is a file in `baselines/`, a dotted one any importable module. ValueError, in one line, if there
    is no such module or it defines no model.
    """
    module_name = family if "." in family else f"baselines.{family}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ValueError(
            f"no family {family!r}; choose one of {', '.join(families())}, or a dotted module of your own"
        ) from None
    models = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, SequenceModel) and member.__module__ == module_name
    ]
    if len(models) != 1:
        raise ValueError(f"{module_name} must define exactly one SequenceModel, it defines {len(models)}")
    return models[0]
