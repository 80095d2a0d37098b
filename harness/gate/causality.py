"""No token may see the future: asked by changing the future, and by asking the gradient for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.interface import SequenceModel
from harness.records import Check


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
