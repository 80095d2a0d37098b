"""Reads each document segment by segment: predicts, then adapts; beside it the same reading with frozen weights.

Both readings see exactly the same tokens: a segment and up to `context` tokens before it, read anew, so that no state
made by older weights is carried along and every family is treated alike. What differs between the two curves is the
adapting alone. Every document begins with the trained weights. The step size is chosen on training documents, for each
model by itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from baselines.interface import SequenceModel
from harness.data.tokens import TokenDocument
from harness.measure.dynamic.adapted import AdaptedWeights
from harness.measure.dynamic.config import DynamicConfig
from harness.measure.nll_file import Advance, finite, write_nll
from harness.records import Dynamic


def dynamic_evaluation(
    baseline: SequenceModel,
    documents: Sequence[TokenDocument],
    training_documents: Sequence[TokenDocument],
    config: DynamicConfig,
    max_length: int,
    train_length: int | None,
    path: Path,
    run_folder: Path,
    advance: Advance,
) -> Dynamic:
    """Read the first `max_length` tokens of each document, frozen and adapting; both go to `path`.

    ValueError where the model lacks the weights that are to move, ArithmeticError where a score is not finite.
    """
    context = config.context
    if context is None:
        context = max((train_length or 2 * config.segment) - config.segment, 0)
    tuning = [np.asarray(d.ids[:max_length]) for d in training_documents[: config.tuning_documents]]
    trials = len(config.rates) if len(config.rates) > 1 else 0
    work = [trials * sum(len(ids) for ids in tuning), *(2 * min(len(d.ids), max_length) for d in documents)]
    names, seconds = [], [0.0, 0.0]
    frozen: list[np.ndarray] = []
    adapted: list[np.ndarray] = []
    with AdaptedWeights(baseline.model, config) as weights:
        reader = Reader(baseline, weights, config.segment, context)
        if config.method == "rms":
            reader.gather(tuning)
        rate = reader.best_rate(config.rates, tuning) if trials else config.rates[0]
        for index, document in enumerate(documents):
            advance(sum(work[: index + 1]), sum(work))
            ids = np.asarray(document.ids[:max_length])
            for kept, step, i in ((frozen, None, 0), (adapted, rate, 1)):
                started = time.perf_counter()
                kept.append(finite(reader.read(ids, step), document.name, 0))
                seconds[i] += time.perf_counter() - started
            names.append(document.name)
        count = weights.count
    sizes = [document.bytes_of(0, max_length) for document in documents]
    per_token = sum(int(size.sum()) for size in sizes) / sum(map(len, sizes))
    first = [int(size[0]) for size in sizes]
    write_nll(path, names, adapted, [size[1:] for size in sizes], first_bytes=first, frozen_nll=frozen)
    return Dynamic(
        nll_file=str(path.relative_to(run_folder)), documents=len(names), tokens=sum(len(nll) for nll in adapted),
        max_length=round(max_length * per_token),
        train_length=None if train_length is None else round(train_length * per_token),
        method=config.method, adapted_parameters=count,
        parameters=config.parameters, segment=config.segment, context=context, learning_rate=rate,
        frozen_seconds=seconds[0], adapted_seconds=seconds[1],
    )  # fmt: skip


class Reader:
    """Reads a document with a model, learning from it or not."""

    def __init__(self, baseline: SequenceModel, weights: AdaptedWeights, segment: int, context: int) -> None:
        self.baseline, self.weights, self.segment, self.context = baseline, weights, segment, context
        self.device = next(baseline.model.parameters()).device

    def read(self, ids: np.ndarray, rate: float | None) -> np.ndarray:
        """Nats [L - 1] of tokens 1 … L - 1, each scored before the step on its segment; `rate` None: no steps."""
        self.weights.reset()
        parts = []
        for begin in range(0, len(ids) - 1, self.segment):
            last = begin + self.segment >= len(ids) - 1
            with torch.set_grad_enabled(rate is not None and not last):
                nll = self._segment(ids, begin)
            parts.append(nll.detach().double().cpu().numpy())
            if rate is not None and not last:
                nll.mean().backward()
                self.weights.step(rate)
        self.weights.reset()
        return np.concatenate(parts)

    def gather(self, documents: Sequence[np.ndarray]) -> None:
        """Mean squared gradients over the segments of training documents."""
        places = [(ids, begin) for ids in documents for begin in range(0, len(ids) - 1, self.segment)]
        for ids, begin in places:
            self._segment(ids, begin).mean().backward()
            self.weights.gather(len(places))

    def best_rate(self, rates: Sequence[float], documents: Sequence[np.ndarray]) -> float:
        """The rate with the lowest NLL over training documents; one that leaves the numbers does not count."""
        totals = [sum(float(self.read(ids, rate).sum()) for ids in documents) for rate in rates]
        return rates[int(np.argmin([total if np.isfinite(total) else np.inf for total in totals]))]

    def _segment(self, ids: np.ndarray, begin: int) -> torch.Tensor:
        """Nats [n] of the targets of the segment that begins at `begin`, given up to `context` tokens before it."""
        end, left = min(begin + self.segment, len(ids) - 1), max(0, begin - self.context)
        row = torch.from_numpy(ids[left : end + 1].astype(np.int64)).to(self.device)
        logits = self.baseline.forward(row[None, :-1])[0, begin - left :]
        return F.cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)), row[begin - left + 1 :], reduction="none"
        )
