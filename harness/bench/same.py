"""Whether two implementations compute the same function: a ratio of times means nothing where they do not."""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.interface import SequenceModel
from harness.train.loop import loss_of

LENGTH = 256
STEPS = 20
LOGITS_BOUND = 1e-4
GRADIENT_BOUND = 1e-3


def logits_difference(ours: SequenceModel, rival: SequenceModel, work: str) -> float:
    """The largest difference of two logits: of a forward, of a prefill, or of single steps after one."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(ours.vocab_size, (1, LENGTH + STEPS), generator=generator)
    with torch.inference_mode():
        pairs = zip(_logits(ours, ids, work), _logits(rival, ids, work), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)


def _logits(baseline: SequenceModel, ids: Tensor, work: str) -> list[Tensor]:
    if work == "train_step":
        return [baseline.forward(ids)]
    logits, state = baseline.prefill(ids[:, :LENGTH], logits_to_keep=0)
    found = [logits.clone()]
    if work == "decode":
        for i in range(LENGTH, LENGTH + STEPS):
            logits, state = baseline.step(ids[:, i : i + 1], state)
            found.append(logits.clone())
    return found


def gradient_difference(ours: SequenceModel, rival: SequenceModel) -> float:
    """The largest difference of two gradients of the loss, relative to the largest gradient of that parameter."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(ours.vocab_size, (1, LENGTH + 1), generator=generator)
    sides = []
    for baseline in (ours, rival):
        baseline.model.train()
        loss_of(baseline.model, ids).backward()
        sides.append({name: p.grad for name, p in baseline.model.named_parameters() if p.grad is not None})
        baseline.model.zero_grad(set_to_none=True)
        baseline.model.eval()
    mine, theirs = sides
    if mine.keys() != theirs.keys():
        raise ValueError(f"gradients of different parameters: {', '.join(sorted(mine.keys() ^ theirs.keys()))}")
    return max(relative_difference(mine[name], theirs[name]) for name in mine)


def relative_difference(mine: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))
