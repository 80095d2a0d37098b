"""The main job: from a checked config to records, and from records to the report.

Three phases. Models are obtained (trained or loaded), gated and scored, several at a time; then timed, one at a time
and in turn; then the report is drawn from the records alone. Each finished measurement is a row on disk before the next
begins, so a job that was killed starts again with what is missing. Under torchrun the first process does all of this
and the others only take their share of the training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from baselines.budget import WORDS, Budget
from baselines.config import FamilyConfig, Unsupported
from harness.comparison import Comparison
from harness.config import RunConfig
from harness.data.ngram import MOST_TOKENS, check_order
from harness.data.shown import tokenised
from harness.data.tokens import TokenStore
from harness.locks import hold
from harness.measure.recall.tasks import check_text
from harness.progress import Display
from harness.records import Conditions, Finish
from harness.timing import Timing
from harness.train.checkpoint import finished_training
from harness.tuning import trained_before

REFERENCE = "reference: "
"""Begins the last line of a run's `config.yaml` where numbers of a paper belong to it."""


def run(config: RunConfig) -> int:
    """Do the whole job of one seed; exit code 0, or 1 after a failed or skipped row; ValueError for a bad config.

    A model that is unsupported here has a row that says so, which is no failure.
    """
    started = time.perf_counter()
    console = Console()
    device = resolve_device(config)
    check_compile(config, device)
    tokens = tokenised(config.data, Path(config.output), console)
    check_lengths(config, tokens)
    check_tokens(config, tokens)
    check_checkpoints(config)
    config = dataclasses.replace(config, model=sized_models(config, tokens.vocab_size))
    if int(os.environ.get("RANK", "0")) > 0:
        with Display(Console(quiet=True)) as display, Comparison(config, device, tokens, display) as comparison:
            comparison.obtain_all()
        return 0
    with own_folder(config) as folder:
        console.print(overview(config, tokens, device))
        with Display(console) as display, Comparison(config, device, tokens, display) as comparison:
            with turn(config, console, to_time=False):
                comparison.quality()
            if config.measure.timing:
                with turn(config, console, to_time=True):
                    Timing(comparison).run()
            failures = comparison.failures()
            finish(comparison, started)
        with hold(folder / ".lock"):
            page = report(folder, console, config.allow_unlike)
    for line in dict.fromkeys(f"[red]{row.model}: {row.kind} {row.status}[/red] {row.message}" for row in failures):
        console.print(line, highlight=False)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return 1 if any(row.status != "unsupported" for row in failures) else 0


def resolve_device(config: RunConfig) -> str:
    """`cpu` or `cuda`; ValueError if CUDA is asked for and not there."""
    import torch

    if config.runtime.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device=cuda: torch finds no CUDA device here; choose cpu or auto")
    if config.runtime.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.runtime.device


def check_compile(config: RunConfig, device: str) -> None:
    """ValueError if torch.compile is asked for and has nothing here that it makes machine code with."""
    if not config.runtime.compile:
        return
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError("runtime.compile=true needs triton on a GPU: pip install triton; or choose false")
    if device == "cpu":
        from ttt_impl.cpu.build import BuildError, compiler

        try:
            compiler()
        except BuildError as error:
            raise ValueError(f"runtime.compile=true: {error}; install one or choose false") from None


def check_tokens(config: RunConfig, tokens: TokenStore) -> None:
    """ValueError if something is to be measured that cannot be with such tokens, or so many."""
    if config.measure.recall.tasks and not tokens.reads_bytes:
        raise ValueError("measure.recall.tasks asks in bytes: choose data.tokenizer=bytes, or measure.recall.tasks=[]")
    for order in config.measure.ngrams:
        check_order(order, tokens.vocab_size)
    if config.measure.ngrams and tokens.total("tokens", "train") > MOST_TOKENS:
        raise ValueError(
            f"measure.ngrams={list(config.measure.ngrams)}: n-grams are counted in memory, of at most {MOST_TOKENS:,}"
            f" training tokens, and there are {tokens.total('tokens', 'train'):,}; choose measure.ngrams=[]"
        )


def check_lengths(config: RunConfig, tokens: TokenStore) -> None:
    """ValueError if no test document reaches the context that is to be measured, or all together that of recall."""
    longest = int(tokens.documents("test").lengths().max())
    if config.max_length > longest:
        key = "measure.max_length" if config.measure.max_length else "measure.max_length (8 × train.length)"
        raise ValueError(f"{key} is {config.max_length} tokens, but the longest test document has {longest}")
    recall = config.measure.recall
    if recall.tasks:
        check_text(tokens.documents("test")[: config.measure.documents], recall.contexts(config.max_length)[-1])


def check_checkpoints(config: RunConfig) -> None:
    """ValueError if a checkpoint is neither a model's folder, a GGUF file nor a hub name of the form owner/name.

    Or if the run that models are to begin from has not trained them.
    """
    begins_from = config.train.init_from
    for name in [name for name, family in config.model.items() if begins_from and not family.checkpoint]:
        folder = trained_before(str(begins_from), config.seed, name)
        if finished_training(folder) is None:
            raise ValueError(f"train.init_from={begins_from}: no trained model at {folder}; give the folder of a run")
    for name, family in config.model.items():
        if family.checkpoint is None or (Path(family.checkpoint) / "config.json").exists():
            continue
        if Path(family.checkpoint).suffix == ".gguf" and Path(family.checkpoint).is_file():
            continue
        key = f"model.{name}.checkpoint={family.checkpoint}"
        if Path(family.checkpoint).is_dir():
            raise ValueError(f"{key}: no config.json in that folder; give the folder that save_pretrained wrote")
        if not re.fullmatch(r"[\w-]+/[\w.-]+", family.checkpoint):
            raise ValueError(f"{key}: no such folder or .gguf file, nor a hub name of the form owner/name")


def sized_models(config: RunConfig, vocab_size: int) -> dict[str, FamilyConfig]:
    """Each model to be trained at the setting that meets the budget; what is loaded, or cannot run, as it is."""
    models: dict[str, FamilyConfig] = dict(config.model)
    budget = Budget(config.size, vocab_size, config.train.length)
    for name, family in models.items():
        if not family.checkpoint:
            with contextlib.suppress(Unsupported):  # building it says so again, in a row
                models[name] = budget.fit(name, family)
    return models


@contextlib.contextmanager
def own_folder(config: RunConfig) -> Iterator[Path]:
    """The run folder, this seed locked against a second job; ValueError if it is in use or another config's."""
    folder = config.run_folder
    folder.mkdir(parents=True, exist_ok=True)

    def refuse() -> None:
        raise ValueError(f"folder={folder}: another job is writing there; wait for it or choose another")

    with hold(folder / f".lock-seed{config.seed}", otherwise=refuse):
        identity = OmegaConf.to_yaml(config.identity(), sort_keys=True)
        known = folder / "config.yaml"
        with hold(folder / ".lock"):
            if known.exists() and written_identity(known) != identity:
                raise ValueError(f"folder={folder}: another config wrote these results; choose another folder or none")
            known.write_text(identity + (f"{REFERENCE}{config.reference}\n" if config.reference else ""))
        yield folder


@contextlib.contextmanager
def turn(config: RunConfig, console: Console, to_time: bool) -> Iterator[None]:
    """Runs beside each other train at the same time on one machine; each times alone, when no other does anything."""

    def say() -> None:
        console.print(f"waits for the other runs that write to {config.output}", highlight=False)

    with hold(Path(config.output) / f".timing-{socket.gethostname()}", shared=not to_time, otherwise=say):
        yield


def written_identity(path: Path) -> str:
    """The text of a `config.yaml` without the line that says what the report draws beside the results."""
    lines = path.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(REFERENCE))


def overview(config: RunConfig, tokens: TokenStore, device: str) -> Table:
    """What will be compared, for the terminal."""
    train, test = tokens.documents("train"), tokens.documents("test")
    title = (
        f"{config.name} · seed {config.seed} · {config.data.source}: {len(train)} training and {len(test)} test"
        f" documents · {device}, {config.runtime.dtype}, {config.runtime.threads} thread(s) a model"
    )
    table = Table(title=title, title_justify="left")
    matched = WORDS.get(config.size.match)
    for column in ("model", "family", "parameters", *([matched] if matched else []), "training"):
        table.add_column(column, justify="right" if column in ("parameters", matched) else "left")
    recipe = config.train
    budget = Budget(config.size, tokens.vocab_size, recipe.length)
    for name, family in config.model.items():
        count, cost = "", ""
        if not family.checkpoint:
            with contextlib.suppress(Unsupported):
                count, cost = f"{family.parameters(tokens.vocab_size):,}", f"{budget.cost(family):,}" if matched else ""
        how = f"loaded from {family.checkpoint}" if family.checkpoint else f"{recipe.tokens:,} tokens × {recipe.length}"
        table.add_row(name, family.family, count, *([cost] if matched else []), how)
    return table


def finish(comparison: Comparison, started: float) -> None:
    """The closing row: what this run of the job cost."""
    wall, cpu = time.perf_counter() - started, comparison.cpu_seconds()
    setup = {"set-up": wall - sum(comparison.parts.values())}, {"set-up": cpu - sum(comparison.cpu_parts.values())}
    values = Finish(wall, cpu, setup[0] | comparison.parts, setup[1] | comparison.cpu_parts)
    comparison.store.append(comparison.record("", "", Finish.kind, values, Conditions()))


def report(folder: Path, console: Console, allow_unlike: Sequence[str]) -> Path:
    """Draw the report and print its summary."""
    from harness.report import render, terminal_summary

    page = render(folder, allow_unlike)
    console.print(terminal_summary(folder, allow_unlike))
    return page
