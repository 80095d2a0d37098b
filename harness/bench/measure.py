"""One case from its models to its values."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

from baselines.interface import SequenceModel
from harness.bench.cases import Case, build, rival_of
from harness.bench.contest import Side, contest
from harness.bench.gemm import GemmWork
from harness.bench.operators import OperatorWork, operator
from harness.bench.same import (
    GRADIENT_BOUND,
    LOGITS_BOUND,
    gradient_difference,
    logits_difference,
    relative_difference,
)
from harness.measure.clock import CpuClock
from harness.measure.scenarios import DecodeScenario, PrefillScenario, Scenario, TrainStepScenario
from harness.records import Benchmark
from harness.runtime import RuntimeConfig
from harness.train.config import TrainConfig

DECODED = 32
"""Tokens of a decoding turn: two of TTT's mini-batches, so that each turn pays for two updates of the weights."""


def measure(case: Case, official: Path | None, rounds: int) -> tuple[Benchmark, str]:
    """The values of a case and our kernel path; NotInstalled if its rival is not here."""
    rounds = case.rounds or rounds
    return _operator(case, rounds) if case.work == "operator" else _model(case, official, rounds)


def _model(case: Case, official: Path | None, rounds: int) -> tuple[Benchmark, str]:
    ours = build(case.ours)
    rival = rival_of(case, ours, official)
    logits = gradient = None
    if case.same_function:
        logits = logits_difference(ours, rival, case.work)
        gradient = gradient_difference(ours, rival) if case.work == "train_step" else None
    scenarios = {"ours": scenario(ours, case), "rival": scenario(rival, case)}
    for side in scenarios.values():
        side.prepare()
    values = _timed(case, {**scenarios, "gemm": gemm(ours, case)}, rounds)
    values.rival_path, values.logits_difference, values.gradient_difference = rival.kernel_path, logits, gradient
    return values, ours.kernel_path


def _operator(case: Case, rounds: int) -> tuple[Benchmark, str]:
    found = operator(case.ours, case.rival, case.length)
    sides = {name: OperatorWork(getattr(found, name), found.inputs) for name in ("ours", "rival")}
    (mine, *my_gradients), (theirs, *their_gradients) = (side.result() for side in sides.values())
    values = _timed(case, {**sides}, rounds)
    values.logits_difference = float((mine - theirs).abs().max())
    values.gradient_difference = max(map(relative_difference, my_gradients, their_gradients))
    return values, ""


def _timed(case: Case, sides: dict[str, Side], rounds: int) -> Benchmark:
    gc.collect()
    times = contest(sides, rounds, CpuClock())
    return dataclasses.replace(
        blank(case),
        cpu_seconds={name: side.cpu for name, side in times.items()},
        wall_seconds={name: side.wall for name, side in times.items()},
    )


def blank(case: Case) -> Benchmark:
    """The values of a case that was not measured."""
    tokens = case.batch * (DECODED if case.work == "decode" else case.length)
    return Benchmark(case.work, case.rival, "", case.batch, case.length, tokens, {}, {}, None, None)


def unequal(values: Benchmark) -> str:
    """What is wrong if the two sides of a case do not compute the same, else nothing."""
    if values.logits_difference is not None and not values.logits_difference <= LOGITS_BOUND:
        return f"not the same function: logits differ by {values.logits_difference:.1e}"
    if values.gradient_difference is not None and not values.gradient_difference <= GRADIENT_BOUND:
        return f"not the same function: gradients differ by {values.gradient_difference:.1e}"
    return ""


def scenario(baseline: SequenceModel, case: Case) -> Scenario:
    """The work of a case."""
    if case.work == "prefill":
        return PrefillScenario(baseline, "cpu", case.batch, case.length)
    if case.work == "decode":
        return DecodeScenario(baseline, "cpu", case.batch, case.length, DECODED)
    recipe = TrainConfig(tokens=case.batch * case.length, length=case.length, batch_size=case.batch)
    return TrainStepScenario(baseline, "cpu", recipe, RuntimeConfig())


def gemm(ours: SequenceModel, case: Case) -> GemmWork:
    """The matrix products within the work of a case."""
    if case.work == "decode":
        return GemmWork(ours, case.batch, 1, train=False, repeats=DECODED)
    return GemmWork(ours, case.batch, case.length, train=case.work == "train_step")
