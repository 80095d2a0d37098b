"""One function, however it is fed: whole, token by token, in pieces, alone or in a batch.

Differences are of log-probabilities, the largest over all positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.interface import SequenceModel
from harness.records import Check


def log_probabilities(logits: Tensor) -> Tensor:
    """Float32 log-softmax over the vocabulary (float64 stays float64)."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _check(name: str, found: Tensor, wanted: Tensor, bound: float) -> Check:
    value = float((log_probabilities(found) - log_probabilities(wanted)).abs().max())
    return Check(name, value <= bound, value, bound)


def _fed_in_pieces(baseline: SequenceModel, ids: Tensor, sizes: list[int]) -> Tensor:
    state, logits = None, []
    for piece in ids.split(sizes, dim=1):
        if state is not None and piece.shape[1] == 1:
            part, state = baseline.step(piece, state)
        else:
            part, state = baseline.prefill(piece, state, logits_to_keep=0)
        logits.append(part)
    return torch.cat(logits, dim=1)


@torch.inference_mode()
def stepwise(baseline: SequenceModel, ids: Tensor, bound: float) -> Check:
    """Prefill of a third, then one token after another, equals one forward pass."""
    length = ids.shape[1]
    start = max(1, length // 3)
    found = _fed_in_pieces(baseline, ids, [start] + [1] * (length - start))
    return _check("prefill + steps = forward", found, baseline.forward(ids), bound)


@torch.inference_mode()
def split(baseline: SequenceModel, ids: Tensor, bound: float) -> Check:
    """A prompt fed in uneven pieces equals one forward pass, wherever it is cut."""
    length = ids.shape[1]
    first, second = length // 5 + 1, length // 2
    found = _fed_in_pieces(baseline, ids, [first, second, length - first - second])
    return _check("any split = forward", found, baseline.forward(ids), bound)


@torch.inference_mode()
def batch(baseline: SequenceModel, ids: Tensor, bound: float) -> Check:
    """A row in a batch equals the row alone."""
    together = baseline.forward(ids)
    alone = torch.cat([baseline.forward(row[None]) for row in ids])
    return _check("batch = row by row", together, alone, bound)
