"""Finds a family by name. There is no list to edit: a family is a module, and the modules are the list.

Packages that are installed may add families: an entry point of the group `ttt_bench.baselines` names a module.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType

import baselines
from baselines.interface import SequenceModel

GROUP = "ttt_bench.baselines"
_NOT_FAMILIES = {"budget", "config", "encoding", "interface", "registry"}


def families() -> list[str]:
    """Names of the families in `baselines/` and of those that installed packages add, without importing them."""
    files = {
        m.name
        for m in pkgutil.iter_modules(baselines.__path__)
        if m.name not in _NOT_FAMILIES and not m.ispkg and not m.name.startswith("_")
    }
    return sorted(files | _added().keys())


def find(family: str) -> type[SequenceModel]:
    """The `SequenceModel` subclass that the module of `family` defines.

    A bare name is a file in `baselines/` or what an installed package calls so, a dotted one any importable module.
    ValueError, in one line, if there is no such module or it defines no model.
    """
    try:
        module = _module(family if "." in family else f"baselines.{family}") or _module(_added().get(family, ""))
    except ImportError as error:
        raise ValueError(f"family {family!r} cannot be imported: {error}") from error
    if module is None and family in _added():
        raise ValueError(f"family {family!r}: its package names a module {_added()[family]!r}, which there is not")
    if module is None:
        choices = ", ".join(families())
        raise ValueError(f"no family {family!r}; choose one of {choices}, or a dotted module of your own")
    return _model_of(module)


def _module(name: str) -> ModuleType | None:
    """The module of that name, or None if there is none."""
    try:
        return importlib.import_module(name) if name else None
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # it is there, and what it imports is not
        return None


@functools.cache
def _model_of(module: ModuleType) -> type[SequenceModel]:
    """Looked for once a module: a budget asks for the family of every layer of thousands of candidates."""
    models = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, SequenceModel) and member.__module__ == module.__name__
    ]
    if len(models) != 1:
        raise ValueError(f"{module.__name__} must define exactly one SequenceModel, it defines {len(models)}")
    return models[0]


@functools.cache
def _added() -> dict[str, str]:
    """Module by name of the families that installed packages add."""
    return {point.name: point.value for point in entry_points(group=GROUP)}
