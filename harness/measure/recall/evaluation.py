"""Asks a model every question at every length and depth, and once a length without the key in the context.

An answer is right if each of its tokens is the likeliest one given all before it, which is what greedy decoding would
then write. Beside that stands its exact NLL with and without the key: the difference is what the model made of the
key, a graded measure where hardly an answer is right. (Without the key a repeated passage stands there for the first
time, after the same bytes.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from baselines.interface import SequenceModel, nats
from harness.data.tokens import TokenDocument
from harness.measure.nll_file import Advance, finite
from harness.measure.recall.config import RecallConfig
from harness.measure.recall.tasks import Trial, trials
from harness.records import TextRecall

Judge = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""Maps rows of token ids [B, L] and a number n of targets to nats of the last n tokens [B, n], and whether each of them
is the likeliest at its place [B, n]."""

TOKENS_AT_ONCE = 4096
"""Questions of one length run as rows of a batch of about so many tokens."""


def text_recall(
    judge: Judge,
    documents: Sequence[TokenDocument],
    config: RecallConfig,
    max_length: int,
    train_length: int | None,
    advance: Advance,
) -> TextRecall:
    """Every task at every length and depth; ValueError where `documents` do not allow it.

    A score that is not finite is an ArithmeticError.
    """
    lengths = config.contexts(max_length)
    found = TextRecall(lengths, list(config.depths), config.repeats, train_length)
    rows = (1 + len(config.depths)) * config.repeats
    done, total = 0, len(config.tasks) * rows * sum(lengths)
    for task in config.tasks:
        drawn = trials(task, documents, lengths[-1], config.repeats)
        found.answer_tokens[task] = len(drawn[0].question.answer)
        found.distances[task] = [[drawn[0].distance(length, depth) for depth in config.depths] for length in lengths]
        found.nll[task], found.nll_without[task], found.right[task] = [], [], []
        for length in lengths:
            nll, right = _ask(judge, drawn, task, length, config.depths)
            found.nll_without[task].append(nll[0].tolist())
            found.nll[task].append(nll[1:].tolist())
            found.right[task].append(right[1:].tolist())
            done += rows * length
            advance(done, total)
    return found


def _ask(
    judge: Judge, drawn: list[Trial], task: str, length: int, depths: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Nats per answer token and tokens that are right, each [1 + depths, repeats]; first without the key."""
    places = [(depth, trial) for depth in (None, *depths) for trial in drawn]
    size, answer = max(1, TOKENS_AT_ONCE // length), len(drawn[0].question.answer)
    nll, right = [], []
    for first in range(0, len(places), size):
        batch = places[first : first + size]
        nats, likeliest = judge(np.stack([trial.row(length, depth) for depth, trial in batch]), answer)
        nll += [finite(row, f"an answer ({task}, {length} tokens)", length - 1).mean(dtype=float) for row in nats]
        right += [int(row.sum()) for row in likeliest]
    shape = (1 + len(depths), len(drawn))
    return np.reshape(nll, shape), np.reshape(right, shape)


@torch.inference_mode()
def judged(baseline: SequenceModel, ids: Tensor, targets: int) -> tuple[np.ndarray, np.ndarray]:
    """The `Judge` of a model, for token ids [B, L] on its device."""
    nll, likeliest = [], []
    for logits, aims in baseline.read(ids, targets=targets):
        nll.append(nats(logits, aims))
        likeliest.append(logits.argmax(-1) == aims)
    return torch.cat(nll, 1).float().cpu().numpy(), torch.cat(likeliest, 1).cpu().numpy()
