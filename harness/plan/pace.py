"""How fast this machine trains and scores a model, timed in a few seconds, in CPU seconds (on a GPU: device seconds).

A step is timed at its true shape where it is small enough; else a smaller one (one row, a shorter length, one part of
the layers, a small vocabulary) says what a FLOP takes. Batches of scoring are timed at the shortest and the longest
length and at those that most tokens are read at; what a FLOP takes at lengths between lies between.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from baselines.config import FamilyConfig
from baselines.interface import SequenceModel
from harness.config import RunConfig
from harness.measure.clock import Clock, CpuClock, clock_for
from harness.measure.scenarios import TrainStepScenario
from harness.plan.memory import STAND_IN, Read, extremes
from harness.plan.shrink import affordable_length, parts, with_weights, without_weights
from harness.plan.work import Work, read_flops, row_flops, timing_seconds
from harness.records import Decode, TrainStep

TIMED_FLOPS, TIMED_PARAMETERS = 5e10, 5e7
"""The most of what is timed as it is."""
LEAST_SECONDS, MOST_TURNS = 0.5, 9
"""A step is timed again until it has taken so long, or so often."""
CONTEXT, STEPS = 64, 9
"""Single steps of decoding are timed so often after so many tokens."""


@dataclass(frozen=True)
class Pace:
    """Seconds of one seed: training, scoring, and the timings, which are never beside other work."""

    training: float
    scoring: float
    timing: float
    exact: bool
    """Whether the step of training was timed at its true shape."""


def pace_of(config: RunConfig, family: FamilyConfig, vocab_size: int, work: Work, device: str) -> Pace:
    """Build the model, or two parts of it, and time it."""
    whole, train = without_weights(family, vocab_size), config.train
    step_flops = train.batch_size * row_flops(config, whole, train.length)
    exact = step_flops <= TIMED_FLOPS and family.parameters(vocab_size) <= TIMED_PARAMETERS
    cut = family if exact else parts(family, vocab_size, train.length)[0][0]
    timed = with_weights(cut, vocab_size if exact else min(vocab_size, STAND_IN))
    torch.nn.Module.to(timed.model, device)
    rows = train.batch_size if exact else 1
    length = train.length if exact else affordable_length(timed, train.length, TIMED_FLOPS)
    training = _step_seconds(timed, config, device, rows, length) / (rows * row_flops(config, timed, length))
    lengths, scoring = _scoring_pace(timed, list(work.reads), work, device)
    scored = sum(
        count * read_flops(whole, read) * float(np.interp(read.length, lengths, scoring))
        for read, count in work.reads.items()
    )
    scored += training * sum(count * whole.flops(tokens, "train") for tokens, count in work.updates.items())
    reading, decoding = (lengths, scoring) if scoring else ([0], [training]), _decoding_pace(timed, config, device)
    return Pace(work.training_flops * training, scored, _timing(config, work, training, reading, decoding), exact)


def _step_seconds(baseline: SequenceModel, config: RunConfig, device: str, rows: int, length: int) -> float:
    """The median of some steps of `rows` × `length` tokens."""
    step = TrainStepScenario(baseline, device, config.train, dataclasses.replace(config.runtime, compile=False))
    step.batch, step.length = rows, length
    step.prepare()
    clock, seconds = clock_here(device), list[float]()
    while sum(seconds) < LEAST_SECONDS and len(seconds) < MOST_TURNS:
        seconds += step.turn(clock)
    step.optimizer.state.clear()
    return statistics.median(seconds)


def _scoring_pace(
    baseline: SequenceModel, reads: Sequence[Read], work: Work, device: str
) -> tuple[list[int], list[float]]:
    """Seconds a FLOP of scoring, by rising lengths."""
    if not reads:
        return [], []
    common = max(reads, key=lambda read: work.reads[read] * read.rows * read.length)
    shortest = min(reads, key=lambda read: (read.length, -read.rows))
    chosen = {read.length: read for read in (shortest, *extremes(reads), common)}
    found = {}
    for read in chosen.values():
        length = affordable_length(baseline, read.length, TIMED_FLOPS)
        rows = max(1, min(read.rows, int(TIMED_FLOPS // baseline.flops(length, "prefill"))))
        tried = Read(rows, length, min(read.targets, length))
        found[read.length] = _read_seconds(baseline, tried, device) / read_flops(baseline, tried)
    return sorted(found), [found[length] for length in sorted(found)]


def _read_seconds(baseline: SequenceModel, read: Read, device: str) -> float:
    ids = torch.randint(baseline.vocab_size, (read.rows, read.length + 1), device=device)
    clock, seconds = clock_here(device), list[float]()
    for _ in range(2):
        start = clock.mark()
        baseline.score(ids, targets=read.targets)
        seconds += clock.seconds([start, clock.mark()])
    return min(seconds)


@torch.inference_mode()
def _decoding_pace(baseline: SequenceModel, config: RunConfig, device: str) -> dict[int, float]:
    """Seconds a FLOP of single steps, by rows: where they are few it is what surrounds the FLOPs that takes time."""
    paces, clock = dict[int, float](), clock_here(device)
    for rows in config.measure.decode_batches if config.measure.timing and config.measure.decode_contexts else []:
        ids = torch.randint(baseline.vocab_size, (rows, CONTEXT), device=device)
        state, marks = baseline.prefill(ids)[1], [clock.mark()]
        for _ in range(STEPS):
            _, state = baseline.step(ids[:, :1], state)
            marks.append(clock.mark())
        paces[rows] = statistics.median(clock.seconds(marks)) / (rows * baseline.flops(CONTEXT, "step"))
    return paces


def _timing(
    config: RunConfig, work: Work, training: float, reading: tuple[list[int], list[float]], decoding: dict[int, float]
) -> float:
    """Seconds of all timings from those that a FLOP takes: in training, in scoring by length, in decoding by rows."""
    turns = []
    for shape, turn, warm in work.timed:
        read = float(np.interp(shape.length, *reading))
        if shape.kind == Decode.kind:
            step = decoding[shape.batch]
            turns.append((turn * step, turn * step + (warm - turn) * read))
        else:
            pace = training if shape.kind == TrainStep.kind else read
            turns.append((turn * pace, warm * pace))
    return timing_seconds(config.measure, turns)


def clock_here(device: str) -> Clock:
    """CPU seconds, or those of the GPU."""
    return CpuClock() if device == "cpu" else clock_for(device)


def wall_seconds(costs: Sequence[float], places: int) -> float:
    """Until all is done, `places` models at a time, the longest first, each in the first place that is free."""
    ends = [0.0] * places
    for cost in sorted(costs, reverse=True):
        ends[ends.index(min(ends))] += cost
    return max(ends)
