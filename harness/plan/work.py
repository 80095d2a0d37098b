"""How much is computed: FLOPs and tokens of training and of every convention of scoring, by the family's own formulas.

`SequenceModel.flops` counts a training sequence as three forwards with the head at every token, and a prefill as one
forward with the head, and what precedes it, at its last; both together give a forward with any number of scored tokens.

Conventions count in bytes (`harness.measure.reading`), and a config's tokens become bytes by the mean of the corpus.
Where tokens are more than a byte, each is taken to be of the mean size in its document: exact in bytes, else nearly so.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from baselines.interface import SequenceModel
from harness.config import RunConfig
from harness.jobs import Shape, shapes
from harness.measure.config import MeasureConfig
from harness.measure.fixed_target import BLOCK, TOKENS_AT_ONCE, block_starts, contexts_up_to
from harness.measure.window import windows
from harness.plan.memory import Read
from harness.records import Decode, TrainStep
from harness.tuning import grid


class TimedShape(NamedTuple):
    """A shape that is timed: its kind, the FLOPs of a turn and those of warming it up."""

    shape: Shape
    turn: int
    warm: int


@dataclass(frozen=True)
class Work:
    """Of one model and one seed: trainings (one a learning rate), what they cost, and what scoring reads.

    `reads` says how often each batch is read; `updates` are forwards with a backward outside training (dynamic
    evaluation), by tokens of the sequence.
    """

    trainings: int
    training_tokens: int
    training_flops: int
    reads: Counter[Read]
    updates: Counter[int]
    scoring_flops: int
    timed: tuple[TimedShape, ...] = ()
    """What is timed afterwards, shape by shape."""

    @property
    def flops(self) -> int:
        """Of training and scoring."""
        return self.training_flops + self.scoring_flops

    @property
    def scored(self) -> int:
        """Tokens whose loss is kept, each with its NLL."""
        return sum(count * read.rows * read.targets for read, count in self.reads.items())


@dataclass(frozen=True)
class HeldOut:
    """The test documents that are scored: tokens and bytes of each, and bytes a token of all that the corpus holds out.

    `own`: the tokens are a model's own, so that nothing that is about the corpus' tokens is asked of it.
    """

    lengths: list[int]
    sizes: list[int]
    bytes_a_token: float = 1.0
    own: bool = False

    def bytes(self, tokens: int) -> int:
        """So many tokens of the corpus in bytes."""
        return round(tokens * self.bytes_a_token)

    def cut(self, most: int) -> list[tuple[int, int]]:
        """(tokens, bytes) of each document's first `most` bytes."""
        documents = zip(self.lengths, self.sizes, strict=True)
        return [(n, size) if size <= most else (round(n * most / size), most) for n, size in documents]

    def read_by_own(self, bytes_a_token: float) -> HeldOut:
        """The same documents in a model's own tokens."""
        return HeldOut([round(size / bytes_a_token) for size in self.sizes], self.sizes, self.bytes_a_token, own=True)


def work_of(config: RunConfig, name: str, baseline: SequenceModel, test: HeldOut) -> Work:
    """What model `name` does for one seed; with rates to choose from, the best one is scored beside the shared one."""
    train, loaded = config.train, config.model[name].checkpoint is not None
    trainings = 0 if loaded else len(grid(config, name))
    tokens = trainings * train.steps * train.tokens_per_step
    training = tokens // train.length * row_flops(config, baseline, train.length)
    reads = scoring_reads(config, test, baseline.context_limit)
    updates = Counter[int]() if test.own else dynamic_updates(config, test.lengths)
    scored = min(2, max(1, trainings))
    flops = sum(count * read_flops(baseline, read) for read, count in reads.items())
    flops += sum(count * baseline.flops(length, "train") for length, count in updates.items())
    return Work(
        trainings, tokens, training, Counter({read: scored * count for read, count in reads.items()}),
        Counter({length: scored * count for length, count in updates.items()}), scored * flops,
        tuple(timed(config, baseline)) if config.measure.timing else (),
    )  # fmt: skip


def row_flops(config: RunConfig, baseline: SequenceModel, length: int) -> int:
    """FLOPs of a sequence of training as the run does it."""
    again = blocks_flops(baseline, length) if config.runtime.activation_checkpointing else 0
    return baseline.flops(length, "train") + again


def timed(config: RunConfig, baseline: SequenceModel) -> Iterator[TimedShape]:
    """Every shape that the run times and the model takes; to warm up it works two or three times, or reads a context.

    A turn of decoding is `measure.decode_tokens` steps from a state that is kept.
    """
    limit, decoded = baseline.context_limit, config.measure.decode_tokens
    for shape in shapes(config):
        kind, length, rows = shape.kind, shape.length, shape.batch
        if limit is not None and kind != TrainStep.kind and length + (decoded if kind == Decode.kind else 0) > limit:
            continue
        if kind == TrainStep.kind and not baseline.trains:
            continue
        if kind == Decode.kind:
            turn = decoded * rows * baseline.flops(length, "step")
            yield TimedShape(shape, turn, turn + rows * baseline.flops(length, "prefill"))
        elif kind == TrainStep.kind:
            turn = rows * row_flops(config, baseline, length)
            yield TimedShape(shape, turn, 2 * turn)
        else:
            turn = rows * baseline.flops(length, "prefill")
            yield TimedShape(shape, turn, 2 * turn)


def timing_seconds(measure: MeasureConfig, turns: Iterable[tuple[float, float]]) -> float:
    """Of shapes with so many seconds a turn and to warm up: each has turns enough and seconds enough."""
    return sum(warm + max(measure.repeats * turn, measure.seconds + turn / 2) for turn, warm in turns)


def read_flops(baseline: SequenceModel, read: Read) -> int:
    """FLOPs of a batch of scoring."""
    return read.rows * _forward(baseline, read.length, read.targets)


@functools.lru_cache(maxsize=4096)
def _forward(baseline: SequenceModel, length: int, targets: int) -> int:
    prefill, whole = baseline.flops(length, "prefill"), baseline.flops(length, "train") // 3
    return prefill + (whole - prefill) * (targets - 1) // max(1, length - 1)


def blocks_flops(baseline: SequenceModel, length: int) -> int:
    """FLOPs of a forward of `length` tokens without the head, which activation checkpointing computes twice."""
    head = 2 * baseline.model.config.hidden_size * baseline.vocab_size
    return baseline.flops(length, "train") // 3 - length * head


def scoring_reads(config: RunConfig, test: HeldOut, limit: int | None = None) -> Counter[Read]:
    """How often each batch of the conventions and of recall is read; `limit` is that of the model's context."""
    kept = test.cut(test.bytes(config.max_length))
    lengths = [min(tokens, limit or tokens) for tokens, _ in kept]
    found: Counter[Read] = Counter(Read(1, n - 1, n - 1) for n in lengths if n > 1)
    if "fixed_target" in config.measure.conventions and test.sizes:
        found += _fixed_target(test, test.bytes(config.max_length), config.measure.targets)
    if "window" in config.measure.conventions:
        window = config.measure.window or config.train.length
        held, stride = test.bytes(window), test.bytes(config.measure.stride or window)
        for tokens, size in kept:
            found += _windows(tokens, size, held, stride)
    recall = config.measure.recall
    if recall.tasks and not test.own:
        rows = (1 + len(recall.depths)) * recall.repeats
        for length in recall.contexts(config.max_length):
            batches = batched(rows, max(1, TOKENS_AT_ONCE // length), length, 1)
            found += Counter({read: len(recall.tasks) * n for read, n in batches.items()})
    return found


def batched(count: int, rows: int, length: int, targets: int) -> Counter[Read]:
    """`count` rows of `length` tokens in batches of `rows`."""
    return +Counter({Read(rows, length, targets): count // rows}) + Counter(
        [Read(count % rows, length, targets)] if count % rows else []
    )


def _windows(tokens: int, size: int, window: int, stride: int) -> Counter[Read]:
    """Of a document of so many tokens and bytes; windows of as many bytes are a batch."""
    mean, found = size / tokens, Counter[Read]()
    places = Counter((end - begin, targets) for begin, end, targets in windows(size, window, stride))
    for (held, targets), count in places.items():
        length = max(1, round((held + 1) / mean) - 1)
        aims = min(length, max(1, round(targets / mean)))
        found += batched(count, max(1, TOKENS_AT_ONCE // (held + 1)), length, aims)
    return found


def _fixed_target(test: HeldOut, longest: int, targets: int) -> Counter[Read]:
    """Blocks of 16 bytes, each given all contexts: as many tokens as share bytes with it, and those before them."""
    contexts, mean = contexts_up_to(longest, test.sizes), sum(test.sizes) / sum(test.lengths)
    blocks = sum(len(block_starts(size, contexts[-1], targets // BLOCK)) for size in test.sizes) if contexts else 0
    aims, found = round((BLOCK - 1) / mean + 1), Counter[Read]()
    for context in contexts:
        rows = max(1, TOKENS_AT_ONCE // (context + BLOCK))
        found += batched(blocks, rows, round(context / mean) + aims - 1, aims)
    return found


def dynamic_updates(config: RunConfig, test_lengths: list[int]) -> Counter[int]:
    """Segments that are learned from in dynamic evaluation, by tokens that each reads; the frozen reading as a third.

    The step size is tried on training documents that are taken to be as long as what is read of the test documents.
    """
    dynamic, found = config.measure.dynamic, Counter[int]()
    if dynamic.method == "none":
        return found
    context = dynamic.context if dynamic.context is not None else max(config.train.length - dynamic.segment, 0)
    longest = min(dynamic.max_length or config.max_length, config.max_length)
    lengths = [min(n, longest) for n in test_lengths[: config.measure.documents][: dynamic.documents]]
    trials = dynamic.tuning_documents * (len(dynamic.rates) if len(dynamic.rates) > 1 else 0)
    readings = [*lengths, *[longest] * (trials + round(len(lengths) / 3))]
    for length in readings:
        for begin in range(0, length - 1, dynamic.segment):
            found[min(begin, context) + min(dynamic.segment, length - 1 - begin)] += 1
    return found
