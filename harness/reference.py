"""Numbers that papers print, as data: where each stands, how it was obtained, and how near counts as the same.

`results/reference/*.yaml` holds a file a paper or table. They are read from the checkout, which is where this project
is run from; outside it, `reference` takes the path of a YAML file of one's own. Only numbers that exist as text are
kept: what a paper shows in a plot alone is listed with what its text claims of it, and has no number. A row may name
the entry of `model` that reproduces it, and a claim the entries that it orders; the report then draws ours against
the paper's.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from harness.config_errors import explain_key

FOLDER = Path(__file__).resolve().parent.parent / "results" / "reference"
OBTAINED = ("table", "text", "plot")


@dataclass
class Paper:
    """The source: its arXiv number and the version that was read; `note` says what a reader must know of it."""

    title: str
    arxiv: str
    version: str = ""
    note: str = ""


@dataclass
class Setting:
    """Under what the numbers were found; what the source does not say is left out."""

    size: str = ""
    parameters: float | None = None
    tokens: float | None = None
    data: str = ""
    tokenizer: str = ""
    context: int | None = None
    hardware: str = ""

    def __str__(self) -> str:
        """Such as '125M parameters, 2.5B tokens of the Pile, Llama-2 tokens, context 2048'."""
        size, context = f"{self.size} parameters", f"context {self.context}"
        parts = [
            size if self.size else "",
            self._data(),
            self.tokenizer,
            context if self.context else "",
            self.hardware,
        ]
        return ", ".join(filter(None, parts))

    def _data(self) -> str:
        amount = f"{self.tokens / 1e9:g}B tokens" if self.tokens else ""
        return " of ".join(filter(None, (amount, self.data)))


@dataclass
class Quantity:
    """What a column counts. `tolerance` is relative and ours: how far a number may lie from the paper's and agree.

    `rounding` is half of the last printed digit.
    """

    unit: str
    tolerance: float
    rounding: float = 0.0
    lower_is_better: bool = True

    def __post_init__(self) -> None:
        if not self.unit or self.tolerance < 0 or self.rounding < 0:
            raise ValueError("a quantity has a unit, a tolerance and a rounding of at least 0")


@dataclass
class Row:
    """A line of a table: its numbers by quantity, and what the paper prints as differences from the row before.

    `model` is the entry of `model` in an experiment that reproduces the row.
    """

    name: str
    model: str | None = None
    values: dict[str, float] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)


@dataclass
class Claim:
    """What the text says of a result, in our words; `order` lists pairs of model entries, the better one first."""

    text: str
    order: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if any(len(pair) != 2 for pair in self.order):
            raise ValueError("order: each entry is a pair [better, worse]")


@dataclass
class Result:
    """One table, or a part of it, a statement of the text, or a plot. Rows of a `ladder` add to each other in turn."""

    where: str
    obtained: str
    title: str
    ladder: bool = False
    setting: Setting = field(default_factory=Setting)
    quantities: dict[str, Quantity] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.obtained not in OBTAINED:
            raise ValueError(f"obtained={self.obtained}: choose from {', '.join(OBTAINED)}")
        if (self.obtained == "plot") == bool(self.rows):
            raise ValueError("a plot has no rows, a table or a text has some")
        _only_once("row", [row.name for row in self.rows])
        _only_once("model", [row.model for row in self.rows if row.model])
        for row in self.rows:
            if unknown := (set(row.values) | set(row.differences)) - set(self.quantities):
                raise ValueError(f"row {row.name}: no such quantity {', '.join(sorted(unknown))}")
        self._check_differences()

    def _check_differences(self) -> None:
        for before, row in itertools.pairwise(self.rows):
            for key, printed in row.differences.items():
                off = abs(row.values[key] - before.values[key] - printed)
                if off > 3 * self.quantities[key].rounding + 1e-9:
                    raise ValueError(f"row {row.name}: {key} is {printed:+g} from the row before in print, not so here")

    @property
    def models(self) -> set[str]:
        """The entries of `model` that this result speaks of."""
        ordered = {name for claim in self.claims for pair in claim.order for name in pair}
        return ordered | {row.model for row in self.rows if row.model}


@dataclass
class Reference:
    """One file: a paper and what is quoted of it, by a name each."""

    paper: Paper
    results: dict[str, Result]
    name: str = ""

    @property
    def source(self) -> str:
        """Such as 'arXiv 2407.04620v4'."""
        return f"arXiv {self.paper.arxiv}{self.paper.version}"

    def cite(self, result: Result) -> str:
        """Such as 'arXiv 2407.04620v4, Table 1'."""
        return f"{self.source}, {result.where}"


def load(name: str) -> Reference:
    """The reference `FILE` or `FILE.RESULT` of `results/reference`, or of a path; ValueError in one line."""
    path, part = _find(name)
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Reference), OmegaConf.load(path)))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path.name}: {explain_key(error)}") from None
    except (YAMLError, ValueError) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from None
    assert isinstance(found, Reference)
    if part and part not in found.results:
        raise ValueError(f"reference={name}: {path.name} has no result {part}; choose from {', '.join(found.results)}")
    kept = {part: found.results[part]} if part else found.results
    return dataclasses.replace(found, results=kept, name=name)


def check(name: str, models: Iterable[str]) -> None:
    """ValueError in one line if there is no such reference, or none of its rows and claims is about these models."""
    spoken = set().union(*(result.models for result in load(name).results.values()))
    if spoken and not spoken & set(models):
        raise ValueError(
            f"reference={name} speaks of {', '.join(sorted(spoken))}, none of which is in model=[{','.join(models)}]"
        )


def available() -> list[str]:
    """The names of the shipped files."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _find(name: str) -> tuple[Path, str]:
    """The file and the part of it that a name means."""
    if name.endswith(".yaml"):
        path, part = Path(name), ""
    else:
        stem, _, part = name.partition(".")
        path = FOLDER / f"{stem}.yaml"
    if not path.is_file():
        choices = ", ".join(available()) or f"none: they lie in results/reference of the checkout, not in {FOLDER}"
        raise ValueError(f"reference={name}: no such file; give the path of a .yaml file or one of {choices}")
    return path, part


def _only_once(what: str, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{what} {', '.join(twice)} occurs twice")
