"""The plan: for every model what it computes, needs and takes, and all of them together on every hardware asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from baselines.config import FamilyConfig, Unsupported
from harness.config import RunConfig
from harness.plan.config import PlanOptions
from harness.plan.corpus import BYTES_A_TOKEN, Corpus, corpus_of
from harness.plan.hardware import HERE, NAMED
from harness.plan.memory import BYTES, Memory, memory_of
from harness.plan.missing import missing, short_of
from harness.plan.pace import Pace, pace_of, wall_seconds
from harness.plan.shrink import of_checkpoint, without_weights
from harness.plan.work import Work, timing_seconds, work_of
from harness.run import resolve_device, sized_models

NLL_BYTES = 6
"""Of a scored token on disk: its float32 and, in Parquet's dictionary, its place. Measured."""
RESUME = 3 * BYTES
"""Bytes a parameter of a resume state: weights and both moments. While one is replaced there are two."""


@dataclass(frozen=True)
class ModelPlan:
    """One model and one seed."""

    name: str
    family: FamilyConfig
    parameters: int = 0
    work: Work = field(default_factory=lambda: Work(0, 0, 0, Counter(), Counter(), 0))
    memory: Memory = field(default_factory=lambda: Memory(0, 0, 0, 0, 0))
    pace: Pace | None = None
    """On this machine, if that was asked for and the model can be built."""
    problem: str = ""
    """Why it cannot be planned."""

    @property
    def kept(self) -> int:
        """Bytes on disk after a run: a checkpoint a training and the losses of every token."""
        return self.work.trainings * BYTES * self.parameters + NLL_BYTES * self.work.scored

    @property
    def resume(self) -> int:
        """Bytes on disk while it trains."""
        return 2 * RESUME * self.parameters if self.work.trainings else 0


@dataclass(frozen=True)
class Plan:
    """All models, all seeds."""

    config: RunConfig
    options: PlanOptions
    corpus: Corpus
    device: str
    models: list[ModelPlan]
    missing: list[str]

    @property
    def runs(self) -> int:
        """Seeds."""
        return len(self.options.seeds)

    @property
    def places(self) -> int:
        """Models that train at the same time here."""
        return self.config.runtime.concurrency(self.device)

    @property
    def here(self) -> bool:
        """Whether this machine has the device."""
        return self.device == "cpu" or torch.cuda.is_available()

    @property
    def disk(self) -> int:
        """Bytes at the most: what is kept of every run, the resume states of one, the tokens."""
        return disk_of(self.models, self.runs, self.places) + self.corpus.stored

    def hours(self, hardware: str, flops: int) -> float:
        """Hours of `flops` on one of the named processors."""
        peak = NAMED[hardware].flops[self.config.runtime.dtype]
        return flops / (peak * self.options.utilisation) / 3600

    def timing_hours(self, hardware: str) -> float:
        """Hours of all timings there, at the least: single tokens reach no such share of the peak."""
        turns = [
            (self.hours(hardware, turn), self.hours(hardware, warm))
            for model in self.models
            for _, turn, warm in model.work.timed
        ]
        return self.runs * timing_seconds(self.config.measure, [(3600 * a, 3600 * b) for a, b in turns]) / 3600

    def timing_here(self) -> float:
        """Seconds of all timings on this machine, of the models that were timed."""
        return self.runs * sum(model.pace.timing for model in self.models if model.pace)

    def wall_here(self) -> float | None:
        """Seconds until all is done on this machine, with nothing else to do; None where a model was not timed."""
        paces = [model.pace for model in self.models if not model.problem]
        known = [pace for pace in paces if pace is not None]
        if len(known) < len(paces) or not known:
            return None
        threads = 1 if self.device == "cuda" else self.config.runtime.threads
        together = wall_seconds([(pace.training + pace.scoring) / threads for pace in known], self.places)
        return self.runs * together + self.timing_here()


def make_plan(config: RunConfig, options: PlanOptions) -> Plan:
    """Plan every model; ValueError for a config that no machine could run."""
    corpus = corpus_of(config)
    try:
        device = resolve_device(config)
    except ValueError:  # no GPU here: one of the things missing
        device = "cuda"
    lacks = list(missing(config, corpus))
    sized = sized_models(config, corpus.vocab_size)
    torch.set_num_threads(config.runtime.threads)
    can_time = HERE in options.hardware and (device == "cpu" or torch.cuda.is_available())
    models = [_plan_model(config, name, family, corpus, device if can_time else None) for name, family in sized.items()]
    said = [line for line in lacks if line.startswith("model.")]
    lacks += [
        f"{model.name}: {model.problem}"
        for model in models
        if model.problem and not any(line.startswith(f"model.{model.name}.") for line in said)
    ]
    places = config.runtime.concurrency(device)
    if HERE in options.hardware:
        most = sorted((max(model.memory.training, model.memory.scoring) for model in models), reverse=True)[:places]
        disk = disk_of(models, len(options.seeds), places)
        if device == "cpu" or torch.cuda.is_available():
            lacks += short_of(disk, sum(most), Path(config.output), device)
    return Plan(config, options, corpus, device, models, lacks)


def disk_of(models: list[ModelPlan], runs: int, places: int) -> int:
    """Bytes that the run writes, at the most."""
    largest = sorted((model.resume for model in models), reverse=True)[:places]
    return runs * sum(model.kept for model in models) + sum(largest)


def _plan_model(config: RunConfig, name: str, family: FamilyConfig, corpus: Corpus, device: str | None) -> ModelPlan:
    """One model, timed on `device` if there is one."""
    vocab_size = corpus.vocab_size
    try:
        if family.checkpoint:
            return _plan_loaded(config, name, family, corpus)
        whole = without_weights(family, vocab_size)
        work = work_of(config, name, whole, corpus.test)
        memory = memory_of(family, vocab_size, config.train, config.runtime, list(work.reads))
        pace = pace_of(config, family, vocab_size, work, device) if device else None
    except (Unsupported, ValueError) as error:
        return ModelPlan(name, family, problem=str(error))
    return ModelPlan(name, family, family.parameters(vocab_size), work, memory, pace)


def _plan_loaded(config: RunConfig, name: str, family: FamilyConfig, corpus: Corpus) -> ModelPlan:
    """A model that is scored alone; it is not loaded, so not timed, nor is its tokenizer."""
    whole = of_checkpoint(family)
    count = whole.model.num_parameters()
    weights = BYTES * count
    work = work_of(config, name, whole, corpus.test if whole.trains else corpus.test.read_by_own(BYTES_A_TOKEN))
    return ModelPlan(name, family, count, work, Memory(weights, 0, 0, 0, weights))
