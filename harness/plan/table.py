"""A plan as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.plan.estimate import ModelPlan, Plan
from harness.plan.hardware import HERE, NAMED
from harness.plan.missing import memory_here

ALL = "all together"


def page(plan: Plan) -> Group:
    """Everything there is to say."""
    parts: list[RenderableType] = [Text(line) for line in _data(plan)]
    parts += [_costs(plan), _memory(plan), _time(plan)]
    parts += [Text(line, style="yellow") for line in _too_large(plan)]
    parts += [Text(line) for line in _assumptions(plan)]
    parts += [Text(f"missing here: {line}", style="yellow") for line in plan.missing] or [Text("missing here: nothing")]
    return Group(*parts)


def _data(plan: Plan) -> Iterator[str]:
    config, corpus = plan.config, plan.corpus
    seeds = ", ".join(map(str, plan.options.seeds))
    yield f"{config.name}: {len(plan.models)} model(s), {plan.runs} seed(s) ({seeds}), {config.runtime.dtype}"
    line = f"data: {config.train.tokens:,} tokens a model needed"
    if corpus.assumed:
        about = f"; about {corpus.train_tokens:,} in the files of data.path" if corpus.train_tokens else ""
        yield f"{line}{about}; assumed: {'; '.join(corpus.assumed)}"
        return
    line += f"; {config.data.source} holds {corpus.train_tokens:,} in {corpus.train_documents:,} training documents"
    if corpus.epoch_tokens:
        line += f": {config.train.steps * config.train.tokens_per_step / corpus.epoch_tokens:.3g} epoch(s)"
    lengths, longest = corpus.test.lengths, config.max_length
    yield (
        f"{line}; {corpus.test_documents:,} test documents, {len(lengths):,} of them scored,"
        f" {sum(n >= longest for n in lengths):,} of those as long as {longest:,} tokens"
    )


def _costs(plan: Plan) -> Table:
    table = _table("model", "family", "parameters", "trainings", "tokens", "training FLOPs", "scoring FLOPs", "on disk")
    for model in _planned(plan):
        work = model.work
        table.add_row(
            model.name, model.family.family, f"{model.parameters:,}", str(work.trainings), f"{work.training_tokens:,}",
            f"{work.training_flops:.3g}", f"{work.scoring_flops:.3g}" if work.scoring_flops else "?", size(model.kept),
        )  # fmt: skip
    total = [sum(plan.runs * figure for figure in column) for column in _totals(plan)]
    table.add_row(
        f"{ALL}, {plan.runs} seed(s)", "", "", str(total[0]), f"{total[1]:,}", f"{total[2]:.3g}",
        f"{total[3]:.3g}" if total[3] else "?", f"{size(plan.disk)} at the most",
    )  # fmt: skip
    return table


def _totals(plan: Plan) -> list[list[int]]:
    works = [model.work for model in _planned(plan)]
    names = ("trainings", "training_tokens", "training_flops", "scoring_flops")
    return [[getattr(work, name) for work in works] for name in names]


def _memory(plan: Plan) -> Table:
    train, rows = plan.config.train, max((model.memory.rows for model in plan.models), default=0)
    together = any(model.memory.together for model in plan.models)
    step = f"{'and' if together else 'or'} activations of {rows} × {train.length}"
    table = _table("peak memory", "training", "weights", "AdamW", "gradients", step, "scoring")
    for model in _planned(plan):
        memory = model.memory
        kinds = (memory.training, memory.weights, memory.moments, memory.gradients, memory.activations, memory.scoring)
        trained = [size(kind) if model.work.trainings else "–" for kind in kinds]
        table.add_row(model.name, trained[0], size(memory.weights), *trained[2:5], size(memory.scoring))
    return table


def _time(plan: Plan) -> Table:
    named = [name for name in plan.options.hardware if name in NAMED]
    here = [f"here, CPU time, {plan.places} at a time"] if HERE in plan.options.hardware else []
    table = _table("time of all seeds", *(f"{name}, GPU-hours" for name in named), *here)
    for model in _planned(plan):
        hours = [_fits(plan, model, name) for name in named]
        table.add_row(model.name, *hours, *([_here(plan, model)] if here else []))
    if plan.config.measure.timing:
        last = [duration(plan.timing_here())] if here else []
        table.add_row("timings, one at a time", *(_hours(plan.timing_hours(name)) for name in named), *last)
    flops = plan.runs * sum(model.work.flops for model in _planned(plan))
    wall = plan.wall_here()
    last = [f"{duration(wall)} by the clock" if wall is not None else "?"] if here else []
    timing = {name: plan.timing_hours(name) for name in named}
    table.add_row(ALL, *(_hours(plan.hours(name, flops) + timing[name]) for name in named), *last)
    return table


def _fits(plan: Plan, model: ModelPlan, hardware: str) -> str:
    hours = _hours(plan.hours(hardware, plan.runs * model.work.flops))
    fits = max(model.memory.training, model.memory.scoring) <= NAMED[hardware].memory
    return hours if fits else f"{hours}, but does not fit"


def _here(plan: Plan, model: ModelPlan) -> str:
    if model.pace is None:
        return "?"
    seconds = duration(plan.runs * (model.pace.training + model.pace.scoring))
    return seconds if model.pace.exact else f"~ {seconds}"


def _too_large(plan: Plan) -> Iterator[str]:
    """The micro-batches with which models train that do not fit as they are."""
    for name in (name for name in plan.options.hardware if name in NAMED):
        most = NAMED[name].memory
        fits = {model.name: model.memory.rows_within(most) for model in _planned(plan) if model.memory.training > most}
        if fits:
            found = ", ".join(f"{rows or 'none'} ({model})" for model, rows in fits.items())
            yield f"{name}: the largest runtime.micro_batch that fits {size(most)}: {found}"


def _assumptions(plan: Plan) -> Iterator[str]:
    options, dtype = plan.options, plan.config.runtime.dtype
    for name in options.hardware:
        if name in NAMED:
            hardware = NAMED[name]
            yield (
                f"{name}: {options.utilisation:.0%} of {hardware.flops[dtype] / 1e12:g} TFLOP/s in {dtype} assumed"
                f" (utilisation=…), {size(hardware.memory)}; {hardware.name}, {hardware.source}"
            )
    if HERE in options.hardware and not plan.here:
        yield "here: not timed, this machine has no such GPU"
    elif HERE in options.hardware:
        cores = f"{plan.config.runtime.threads} thread(s) a model"
        yield (
            f"here: timed on {plan.device}, {cores}, {size(memory_here(plan.device))} of memory; start, gate,"
            " diagnostics and n-grams come on top (~: carried on from a smaller step); memory is that of tensors"
        )
    if plan.config.runtime.compile:
        yield "runtime.compile: neither what compiling takes nor what it gains is counted"


def _planned(plan: Plan) -> list[ModelPlan]:
    return [model for model in plan.models if not model.problem]


def _table(first: str, *columns: str) -> Table:
    table = Table()
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 2**10:.0f} KiB"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, factor in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.1f} s"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}" if hours >= 0.01 else "< 0.01"
