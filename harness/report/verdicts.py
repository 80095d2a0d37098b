"""The tables of ours against a paper's: a verdict for every row, and one for every order that its text claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.report import formats
from harness.report.against import MISSING, NO, QUANTITY, Against, sign_verdict, signs
from harness.report.formats import Interval
from harness.report.style import DAGGER
from harness.report.summary import at, describe
from harness.report.tables import Column, Table


def against(compared: Sequence[Against]) -> list[Table]:
    """A table for each result with rows, and one for all claims."""
    tables = [_rows(each) if each.compared else _quoted(each) for each in compared if each.result.rows]
    claims = _claims(compared)
    return [*tables, *([claims] if claims else [])]


def percent(share: Interval | None) -> str:
    """A share as percentage with its interval, signed."""
    if share is None:
        return formats.MISSING
    text = formats.interval(Interval(100 * share.value, 100 * share.low, 100 * share.high))
    return f"+{text}" if share.value > 0 else text


def _percent(share: float | None) -> str:
    if share is None:
        return formats.MISSING
    return f"{100 * share:+.2f}".replace("-", "−").replace("+0.00", "0")


def _rows(each: Against) -> Table:
    steps = each.steps()
    places = _places([step.ours.value if step.ours else None for step in steps])
    rows: list[dict[str, Any]] = [
        {
            "row": step.row.name, "model": each.names.get(step.row.model or ""), "paper": step.printed,
            "ours": step.ours, "place_paper": printed, "place_ours": place,
            "paper_change": step.printed_change, "change": step.change, "signs": step.signs or None,
            "verdict": step.verdict or None,
        }
        for step, printed, place in zip(steps, _places([step.printed for step in steps]), places, strict=True)
    ]  # fmt: skip
    tolerance = each.result.quantities[QUANTITY].tolerance
    if each.same_scale:
        for row, step in zip(rows, steps, strict=True):
            row["agrees"] = {True: "yes", False: NO, None: None}[each.agrees(step)]
    wrong = frozenset(i for i, row in enumerate(rows) if NO in (row["verdict"], row.get("agrees")))
    before = "the row before" if each.result.ladder else "the first row"
    columns = [
        Column("row", "row", text=True),
        Column("model", "our model", text=True),
        Column("paper", "ppl/token, paper", lambda v: f"{v:.2f}"),
        Column("ours", f"ppl/{each.within.unit}, ours", formats.interval),
        *([Column("agrees", f"within {100 * tolerance:g} %", text=True)] if each.same_scale else []),
        Column("place_paper", "place, paper"),
        Column("place_ours", "ours"),
        Column("paper_change", f"Δ loss from {before} (%), paper", _percent),
        Column("change", "ours", percent),
        Column("signs", "by seed", text=True),
        Column("verdict", "sign reproduces", text=True),
    ]
    title = f"Ours against the paper: {each.result.title}"
    return Table(_name(each), title, _caption(each), columns, rows, wrong)


def _caption(each: Against) -> str:
    right, pairs = each.in_order()
    tolerance = 100 * each.result.quantities[QUANTITY].tolerance
    scale = (
        f"At the paper's scale: ours should lie within {tolerance:g} % of the printed perplexity (our choice; the "
        "paper gives no spread)."
        if each.same_scale
        else "Run at another scale than the paper's: perplexities are not held against the printed ones; compared are "
        "the order of rows and the change of the loss (log-perplexity) from row to row, in per cent of it, which "
        "depends on no tokenizer."
    )
    return (
        f"{_source(each)} Ours: {each.ours()}; on {describe(each.within)}. {scale} Sign reproduces: yes if the "
        "interval of our change and every seed lie on the paper's side of zero, no if on the other, else not certain; "
        f"where the paper's change is 0, yes if they lie within what {tolerance:g} % of the paper's perplexity would "
        f"be. By seed: the sign of each. {right} of {pairs} pairs of measured rows stand in the paper's order."
    )


def _quoted(each: Against) -> Table:
    """The paper's numbers alone, where a run measures nothing of the kind."""
    keys = list(each.result.quantities)
    rows: list[dict[str, Any]] = [{"row": row.name, **row.values} for row in each.result.rows]
    columns = [
        Column("row", "row", text=True),
        *(Column(key, f"{key} ({each.result.quantities[key].unit})", _as_printed) for key in keys),
    ]
    caption = f"{_source(each)} Quoted only: this run measured nothing to hold against it."
    return Table(_name(each), f"Quoted: {each.result.title}", caption, columns, rows)


def _as_printed(value: float | None) -> str:
    return formats.MISSING if value is None else f"{value:,.10g}"


def _claims(compared: Sequence[Against]) -> Table | None:
    rows = [row for each in compared for row in _claimed(each)]
    if not rows:
        return None
    columns = [
        Column("where", "where", text=True),
        Column("setting", "the paper's setting", text=True),
        Column("claim", "what the text says", text=True),
    ]
    source = "; ".join(dict.fromkeys(each.reference.source for each in compared))
    caption = f"{source}, in our words."
    if any("verdict" in row for row in rows):
        columns += [
            Column("better", "better", text=True),
            Column("worse", "than", text=True),
            Column("change", "Δ loss, ours (%)", percent),
            Column("signs", "by seed", text=True),
            Column("verdict", "reproduces", text=True),
        ]
        other = "" if all(each.same_scale for each in compared) else " Run at another scale: only order is compared."
        caption += (
            f" Ours: {compared[0].ours()}; on {describe(compared[0].within)}.{other} Reproduces: yes if the whole "
            "interval of the better one's loss less the other's and every seed lie below zero, no if above, else not "
            "certain; no verdict where a claim orders none of our models."
        )
    wrong = frozenset(i for i, row in enumerate(rows) if row.get("verdict") == NO)
    return Table("claims", "What the paper's text claims", caption, columns, rows, wrong)


def _claimed(each: Against) -> list[dict[str, Any]]:
    """A row for every pair of our models that a claim orders, and for every claim that orders none."""
    told = {"where": each.result.where, "setting": str(each.result.setting) or None}
    if each.result.obtained == "plot" and not each.result.claims:
        return [told | {"claim": f"{each.result.title}: a plot alone, no number and no claim to test"}]
    rows = []
    for claim in each.result.claims:
        pairs = [pair for pair in claim.order if set(pair) & {name.rstrip(DAGGER) for name in each.run.models}]
        rows += [
            told | {"claim": claim.text} | verdict for verdict in [_ordered(each, *pair) for pair in pairs] or [{}]
        ]
    return rows


def _ordered(each: Against, better: str, worse: str) -> dict[str, Any]:
    """Whether our models stand in the order that is claimed."""
    row: dict[str, Any] = {"better": better, "worse": worse}
    one, other = each.names.get(better), each.names.get(worse)
    if not one or not other:
        return row | {"verdict": MISSING}
    change = at(each.within.change(one, other), 0)
    by_seed = each.within.seed_changes(one, other)
    return row | {"change": change, "signs": signs(by_seed), "verdict": sign_verdict(-1.0, change, 0.0, by_seed)}


def _source(each: Against) -> str:
    setting = str(each.result.setting)
    return f"{each.reference.cite(each.result)}{f' ({setting})' if setting else ''}."


def _name(each: Against) -> str:
    part = next(name for name, result in each.reference.results.items() if result is each.result)
    return f"against-{part.replace('_', '-')}"


def _places(values: Sequence[float | None]) -> list[int | None]:
    """Each value's place among those that are there, the least first; equal ones share a place."""
    return [None if v is None else 1 + sum(other < v for other in values if other is not None) for v in values]
