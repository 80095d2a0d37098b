"""The outputs are probabilities, and the score is what they say."""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.interface import SequenceModel
from harness.gate.equivalence import log_probabilities
from harness.records import Check


@torch.inference_mode()
def finite(baseline: SequenceModel, ids: Tensor) -> Check:
    """Every logit is a finite number; the value is the share of those that are not."""
    share = 1 - float(baseline.forward(ids).isfinite().double().mean())
    return Check("finite", share == 0, share, 0.0)


@torch.inference_mode()
def normalised(baseline: SequenceModel, ids: Tensor) -> Check:
    """Probabilities over the vocabulary [V] sum to one, within 1e-5 or what rounding in float32 leaves of V terms."""
    bound = max(1e-5, torch.finfo(torch.float32).eps * baseline.vocab_size**0.5)
    total = log_probabilities(baseline.forward(ids)).exp().double().sum(-1)
    worst = float((total - 1).abs().max())
    return Check("probabilities sum to 1", worst <= bound, worst, bound)


@torch.inference_mode()
def scored(baseline: SequenceModel, ids: Tensor, bound: float) -> Check:
    """`score` equals the log-probability that `forward` gives the next token: no shift, nothing skipped."""
    wanted = -log_probabilities(baseline.forward(ids))[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    found = baseline.score(ids, segment=ids.shape[1] // 3 + 1)
    if found.shape != wanted.shape:
        return Check("score = forward", False, float("inf"), bound)
    worst = float((found - wanted).abs().max())
    return Check("score = forward", worst <= bound, worst, bound)
