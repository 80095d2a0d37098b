"""No token may see the future: asked by changing the future, and by asking the gradient for it.

An FFT brings rounding of all tokens to each of them. A family that declares so (`exact_causality = False`) is asked in
float64, where rounding stays far below anything that a real leak would show, and by its step form, which can see
no future at all.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.interface import SequenceModel
from harness.gate import equivalence
from harness.records import Check

FLOAT64_BOUND = 1e-10


def exact(baseline: SequenceModel, ids: Tensor) -> list[Check]:
    """Both questions about `ids` [B, L], to the bit."""
    return [perturbation(baseline, ids), gradient(baseline, ids)]


def rounded(baseline: SequenceModel, ids: Tensor) -> list[Check]:
    """Both questions in float64, to rounding; and one token after another, the logits are those of the whole."""
    wide = copy.copy(baseline)
    wide.model = copy.deepcopy(baseline.model).double()
    return [
        perturbation(wide, ids, FLOAT64_BOUND),
        gradient(wide, ids, FLOAT64_BOUND),
        dataclasses.replace(equivalence.stepwise(wide, ids, FLOAT64_BOUND), name="causal: float64 steps = forward"),
    ]


def perturbation(baseline: SequenceModel, ids: Tensor, bound: float = 0.0) -> Check:
    """Change token t at a fixed shape: logits before t stay bit-equal, for several t across `ids` [B, L].

    The positions are taken apart from one another by primes, so that no block or mini-batch size hides a leak.
    """
    length = ids.shape[1]
    worst = 0.0
    with torch.inference_mode():
        logits = baseline.forward(ids)
        for t in sorted({1, 2, length // 3, length // 2 + 1, length - 1}):
            changed = ids.clone()
            changed[:, t] = (changed[:, t] + 1) % baseline.vocab_size
            other = baseline.forward(changed)
            worst = max(worst, float((other[:, :t] - logits[:, :t]).abs().max()))
    return Check("causal: future changed", worst <= bound, worst, bound)


def gradient(baseline: SequenceModel, ids: Tensor, bound: float = 0.0) -> Check:
    """The loss of token t has no gradient in the embedding of any token after t - 1 (its inputs are 0 … t - 1)."""
    embedded: list[Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        embedded.append(leaf)
        return leaf

    handle = baseline.model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = baseline.forward(ids)
    finally:
        handle.remove()
    worst, length = 0.0, ids.shape[1]
    for t in sorted({1, length // 3, length // 2 + 1, length - 2}):
        loss = F.cross_entropy(logits[:, t - 1].float(), ids[:, t])
        (grad,) = torch.autograd.grad(loss, embedded[0], retain_graph=True)
        worst = max(worst, float(grad[:, t:].abs().max()))
        if not grad[:, :t].abs().sum() > 0:
            worst = float("inf")
    return Check("causal: gradient of the future", worst <= bound, worst, bound)
