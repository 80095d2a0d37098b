"""All checks on one model."""

from __future__ import annotations

import torch

from baselines.interface import SequenceModel
from harness.gate import causality, equivalence, probability
from harness.gate.causality import FLOAT64_BOUND
from harness.records import Check, Gate

FLOAT32_BOUND = 1e-4


def run_gate(baseline: SequenceModel, length: int = 83, rows: int = 2, seed: int = 0) -> Gate:
    """Every check of the gate on random tokens [rows, length].

    The default length is a prime, so that it is no multiple of any block or mini-batch size. Bounds: exact for
    causality (same shapes, same thread count), but 1e-10 in float64 for a family that says an FFT rounds across
    time; 1e-4 for equivalences in float32 and 1e-10 in float64 (nats).
    """
    parameter = next(baseline.model.parameters())
    bound = FLOAT64_BOUND if parameter.dtype == torch.float64 else FLOAT32_BOUND
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(baseline.vocab_size, (rows, length), generator=generator).to(parameter.device)
    baseline.model.eval()
    checks: list[Check] = [
        probability.finite(baseline, ids),
        probability.normalised(baseline, ids),
        probability.scored(baseline, ids, bound),
        *(causality.exact(baseline, ids) if baseline.exact_causality else causality.rounded(baseline, ids)),
        equivalence.stepwise(baseline, ids, bound),
        equivalence.batch(baseline, ids, bound),
    ]
    if baseline.continues:
        checks.append(equivalence.split(baseline, ids, bound))
    return Gate(checks)
