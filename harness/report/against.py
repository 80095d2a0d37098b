"""Ours against a paper's: each row's perplexity, each step's change, and whether the paper's sign comes out again.

At the paper's scale a perplexity is held against the printed one, within a tolerance. A run at another scale has other
perplexities by right; what can be compared is the order of the rows and the change from one to the next, as a share of
the loss (log-perplexity), which depends on no tokenizer. A sign counts as reproduced only if the whole paired interval
lies on the paper's side of zero: a difference that other documents might undo is neither a yes nor a no.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.records import Training
from harness.reference import Reference, Result, Row, Setting
from harness.report.collect import Run
from harness.report.formats import Interval
from harness.report.style import DAGGER
from harness.report.summary import at, exponential
from harness.report.within import Within

QUANTITY = "perplexity"
"""The quantity of a reference that a run measures."""
YES, NO, UNSURE, MISSING = "yes", "no", "not certain", "not measured"
SAME_PARAMETERS, SAME_TOKENS = 0.15, 0.05
"""Within these shares a run counts as of the paper's size: names of sizes are round, and so are printed budgets."""


@dataclass(frozen=True)
class Step:
    """A row of the paper with ours beside it, and the change from the row that it is held against (`base`).

    Changes are shares of the loss of the base.
    """

    row: Row
    printed: float
    ours: Interval | None = None
    base: str | None = None
    printed_change: float | None = None
    change: Interval | None = None
    seed_changes: tuple[float, ...] = ()
    verdict: str = ""

    @property
    def signs(self) -> str:
        """The sign of the change in each seed, such as '−−+'."""
        return signs(self.seed_changes)


@dataclass(frozen=True)
class Against:
    """One result of a reference beside a run."""

    reference: Reference
    result: Result
    run: Run
    within: Within
    config: Mapping[str, Any]

    @property
    def names(self) -> dict[str, str]:
        """The scored models of the run by the entry of `model` that they are."""
        return {name.rstrip(DAGGER): name for name in self.within.names}

    @property
    def compared(self) -> bool:
        """Whether this result and this run have a perplexity of the same model."""
        known = {row.model for row in self.result.rows if QUANTITY in row.values}
        return bool(known & set(self.names))

    @property
    def same_scale(self) -> bool:
        """Whether parameters, training tokens, context, tokens and data are the paper's (the data by its name)."""
        setting, found = self.result.setting, self._training()
        if not (found and setting.parameters and setting.tokens and setting.context) or self.within.unit == "byte":
            return False
        return all(
            abs(values.parameters / setting.parameters - 1) <= SAME_PARAMETERS
            and abs(values.tokens / setting.tokens - 1) <= SAME_TOKENS
            and values.train_length == setting.context
            for values in found
        ) and _same_data(setting, self.config)

    def ours(self) -> str:
        """Our setting, such as '0.71M parameters, 1.2M tokens of sotu, bytes, context 256'."""
        found = self._training()
        source = self.config.get("data", {}).get("source", "")
        parts = []
        if found:
            parts.append(f"{_span([values.parameters / 1e6 for values in found])}M parameters")
            tokens = f"{_span([values.tokens / 1e6 for values in found])}M tokens"
            parts.append(f"{tokens} of {source}" if source else tokens)
        parts.append("bytes as tokens" if self.within.unit == "byte" else "tokens of its own tokenizer")
        return ", ".join([*parts, f"context {self.within.trained}"])

    def steps(self) -> list[Step]:
        """Every row: held against the row before it in a ladder, else against the first row that we have."""
        found: list[Step] = []
        first = next((row for row in self.result.rows if row.model in self.names), None)
        for before, row in zip([None, *self.result.rows], self.result.rows, strict=False):
            base = before if self.result.ladder else (first if row is not first else None)
            found.append(self._step(row, base))
        return found

    def _step(self, row: Row, base: Row | None) -> Step:
        printed, name = row.values[QUANTITY], self.names.get(row.model or "")
        ours = exponential(at(self.within.log_perplexity(name), 0)) if name else None
        if base is None:
            return Step(row, printed, ours, verdict="" if name else MISSING)
        loss = math.log(base.values[QUANTITY])
        printed_change = math.log(printed) / loss - 1
        other = self.names.get(base.model or "")
        if not name or not other:
            return Step(row, printed, ours, base.name, printed_change, verdict=MISSING)
        change = at(self.within.change(name, other), 0)
        same = math.log1p(self.result.quantities[QUANTITY].tolerance) / loss
        by_seed = tuple(self.within.seed_changes(name, other))
        verdict = sign_verdict(printed_change, change, same, by_seed)
        return Step(row, printed, ours, base.name, printed_change, change, by_seed, verdict)

    def agrees(self, step: Step) -> bool | None:
        """At the paper's scale: whether our perplexity lies within the tolerance of the printed one."""
        if step.ours is None or not self.same_scale:
            return None
        return abs(step.ours.value / step.printed - 1) <= self.result.quantities[QUANTITY].tolerance

    def in_order(self) -> tuple[int, int]:
        """Of the pairs of measured rows that the paper tells apart: how many stand in its order, and how many are."""
        pairs = [
            (b.printed - a.printed, b.ours.value - a.ours.value)
            for a, b in itertools.combinations(self.steps(), 2)
            if a.ours and b.ours and a.printed != b.printed
        ]
        return sum(theirs * ours > 0 for theirs, ours in pairs), len(pairs)

    def _training(self) -> list[Training]:
        wanted = [name for entry, name in self.names.items() if entry in self.result.models]
        return [values for name in wanted or self.within.names for values in self.run.values(Training, name)]


def signs(changes: Sequence[float]) -> str:
    """The sign of each change in turn, such as '−−+'."""
    return "".join("−" if change < 0 else ("+" if change > 0 else "0") for change in changes)


def sign_verdict(printed: float, change: Interval, same: float, by_seed: Sequence[float] = ()) -> str:
    """Whether `change` has the sign that is `printed`; where that is none, whether it stays within ± `same`.

    The interval knows nothing of seeds, so nothing is certain that one of them (`by_seed`) denies.
    """
    if by_seed:
        verdict = sign_verdict(printed, change, same)
        agreed = all(sign_verdict(printed, Interval(seed, seed, seed), same) == verdict for seed in by_seed)
        return verdict if agreed else UNSURE
    if not (math.isfinite(change.low) and math.isfinite(change.high)):
        return UNSURE
    if printed == 0:
        if -same <= change.low and change.high <= same:
            return YES
        return NO if change.low > same or change.high < -same else UNSURE
    low, high = (change.low, change.high) if printed > 0 else (-change.high, -change.low)
    if low > 0:
        return YES
    return NO if high < 0 else UNSURE


def compare(run: Run, references: Sequence[Reference], config: Mapping[str, Any]) -> list[Against]:
    """Every result of the references beside the run; nothing is read where there is no reference."""
    if not references:
        return []
    within = Within(run)
    return [
        Against(reference, result, run, within, config)
        for reference in references
        for result in reference.results.values()
    ]


def _same_data(setting: Setting, config: Mapping[str, Any]) -> bool:
    wanted = setting.data.lower().removeprefix("the ")
    return bool(wanted) and wanted in json.dumps(config.get("data", {})).lower()


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low}–{high}"
