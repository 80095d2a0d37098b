"""What a model reports of itself while it reads test documents; which curves those are, its family decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from baselines.interface import SequenceModel
from harness.data.tokens import TokenDocument
from harness.records import Diagnostics

STRIDE = 16
"""Tokens averaged into one point."""
MOST_DOCUMENTS = 8


def diagnose(baseline: SequenceModel, documents: Sequence[TokenDocument], max_length: int, device: str) -> Diagnostics:
    """The family's curves over the first `max_length` tokens, mean over the first documents that reach so far."""
    chosen = [document for document in documents if len(document.ids) >= max_length][:MOST_DOCUMENTS]
    sums: dict[str, torch.Tensor] = {}
    for document in chosen:
        ids = torch.from_numpy(np.asarray(document.ids[:max_length]).astype(np.int64))[None].to(device)
        for name, curve in baseline.diagnostics(ids).items():
            whole = curve[:, : curve.shape[1] // STRIDE * STRIDE].double().unflatten(1, (-1, STRIDE)).mean(2).cpu()
            sums[name] = sums[name] + whole if name in sums else whole
    curves = {name: (total / len(chosen)).float().tolist() for name, total in sums.items()}
    return Diagnostics(len(chosen), STRIDE, curves)
