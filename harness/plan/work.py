"""How much is computed: FLOPs and tokens of training and of every convention of scoring, by the family's own formulas.

`SequenceModel.flops` counts a training sequence as three forwards with the head at every token, and a prefill as one
forward with the head at its last; both together give a forward with any number of scored tokens.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

from baselines.interface import SequenceModel
from harness.config import RunConfig
from harness.measure.fixed_target import BLOCK, TOKENS_AT_ONCE, block_starts, contexts_up_to
from harness.measure.window import windows
from harness.plan.memory import Read
from harness.tuning import grid


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

    @property
    def flops(self) -> int:
        """All of it."""
        return self.training_flops + self.scoring_flops

    @property
    def scored(self) -> int:
        """Tokens whose loss is kept, each with its NLL."""
        return sum(count * read.rows * read.targets for read, count in self.reads.items())


def work_of(config: RunConfig, name: str, baseline: SequenceModel, test_lengths: list[int]) -> Work:
    """What model `name` does for one seed; with rates to choose from, the best one is scored beside the shared one."""
    train, loaded = config.train, config.model[name].checkpoint is not None
    trainings = 0 if loaded else len(grid(config, name))
    tokens = trainings * train.steps * train.tokens_per_step
    training = tokens // train.length * baseline.flops(train.length, "train")
    reads, updates = scoring_reads(config, test_lengths), dynamic_updates(config, test_lengths)
    scored = min(2, max(1, trainings))
    flops = sum(count * read_flops(baseline, read) for read, count in reads.items())
    flops += sum(count * baseline.flops(length, "train") for length, count in updates.items())
    return Work(
        trainings, tokens, training, Counter({read: scored * count for read, count in reads.items()}),
        Counter({length: scored * count for length, count in updates.items()}), scored * flops,
    )  # fmt: skip


def read_flops(baseline: SequenceModel, read: Read) -> int:
    """FLOPs of a batch of scoring."""
    return read.rows * _forward(baseline, read.length, read.targets)


@functools.lru_cache(maxsize=4096)
def _forward(baseline: SequenceModel, length: int, targets: int) -> int:
    prefill, whole = baseline.flops(length, "prefill"), baseline.flops(length, "train") // 3
    return prefill + (whole - prefill) * (targets - 1) // max(1, length - 1)


def scoring_reads(config: RunConfig, test_lengths: list[int]) -> Counter[Read]:
    """How often each batch of the conventions, of dynamic evaluation's frozen reading and of recall is read."""
    lengths = test_lengths[: config.measure.documents]
    kept = [min(length, config.max_length) for length in lengths]
    found: Counter[Read] = Counter(Read(1, length - 1, length - 1) for length in kept)
    if "fixed_target" in config.measure.conventions and lengths:
        found += _fixed_target(lengths, config.max_length, config.measure.targets)
    if "window" in config.measure.conventions:
        size = config.measure.window or config.train.length
        for length in kept:
            places = Counter((end - begin, n) for begin, end, n in windows(length, size, config.measure.stride or size))
            for (tokens, targets), count in places.items():
                found += batched(count, tokens, targets)
    recall = config.measure.recall
    if recall.tasks:
        rows = (1 + len(recall.depths)) * recall.repeats
        for length in recall.contexts(config.max_length):
            found += Counter({read: len(recall.tasks) * n for read, n in batched(rows, length, 1).items()})
    return found


def batched(count: int, length: int, targets: int) -> Counter[Read]:
    """`count` rows of `length` tokens in batches of about as many tokens as every convention takes at once."""
    rows = max(1, TOKENS_AT_ONCE // (length + 1))
    return +Counter({Read(rows, length, targets): count // rows}) + Counter(
        [Read(count % rows, length, targets)] if count % rows else []
    )


def _fixed_target(lengths: list[int], longest: int, targets: int) -> Counter[Read]:
    contexts = contexts_up_to(longest, lengths)
    blocks = sum(len(block_starts(length, contexts[-1], targets // BLOCK)) for length in lengths) if contexts else 0
    return sum((batched(blocks, context + BLOCK - 1, BLOCK) for context in contexts), Counter[Read]())


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
