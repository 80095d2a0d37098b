"""Models with a planted fault each: small changes of a sound one, and the checks of the gate that must name them.

The sound models are the README's GRU and a small TTT-Linear, so that faults of the mini-batch and of the fast weights
are planted where they would really happen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.interface import SequenceModel, State

Change = Callable[[Tensor], Tensor]
Plant = Callable[[SequenceModel], None]

FUTURE, GRADIENT = "causal: future changed", "causal: gradient of the future"
STEPS, SPLIT, BATCH = "prefill + steps = forward", "any split = forward", "batch = row by row"
SCORE = "score = forward"


def one_token(x: Tensor) -> Tensor:
    """Every token sees a trace of the next."""
    return x + 1e-3 * x.roll(-1, dims=1)


def mini_batch(x: Tensor) -> Tensor:
    """Tokens see the whole of their 16, as a mini-batch without its causal mask lets them."""
    blocks = F.pad(x, (0, 0, 0, -x.shape[1] % 16)).unflatten(1, (-1, 16))
    return x + 1e-3 * blocks.mean(2, keepdim=True).expand_as(blocks).flatten(1, 2)[:, : x.shape[1]]


def norm_over_time(x: Tensor) -> Tensor:
    """A norm whose statistics run over time instead of features."""
    return x / (1 + x.square().mean(1, keepdim=True))


def norm_over_batch(x: Tensor) -> Tensor:
    """A norm whose statistics run over the rows of the batch."""
    return x - x.mean(0, keepdim=True)


def embedded(change: Change) -> Plant:
    """Changes the embedded tokens [B, L, d] of every call."""

    def plant(baseline: SequenceModel) -> None:
        embedding = baseline.model.get_input_embeddings()
        original = embedding.forward
        embedding.forward = lambda ids: change(original(ids))

    return plant


def hidden(change: Change) -> Plant:
    """Changes what the recurrence of the GRU reads, behind the embedding."""

    def plant(baseline: SequenceModel) -> None:
        original = baseline.model.gru.forward
        baseline.model.gru.forward = lambda x, state=None: original(change(x), state)

    return plant


def lost_state(baseline: SequenceModel) -> None:
    """Every call begins anew."""
    prefill = baseline.prefill

    def forgetful(ids: Tensor, state: State | None = None, logits_to_keep: int = 1) -> tuple[Tensor, State]:
        return prefill(ids, None, logits_to_keep)

    baseline.prefill = forgetful  # type: ignore[method-assign]


def frozen_fast_weights(baseline: SequenceModel) -> None:
    """Decoding reads the fast weights and never writes them: what a step learns is dropped."""
    step = baseline.step

    def frozen(ids: Tensor, state: State) -> tuple[Tensor, State]:
        before = [copy.deepcopy(layer.fast) for layer in state.layers]
        logits, after = step(ids, state)
        for layer, fast in zip(after.layers, before, strict=True):
            layer.fast = fast
        return logits, after

    baseline.step = frozen  # type: ignore[method-assign]


def shifted_targets(baseline: SequenceModel) -> None:
    """The score is that of the tokens before: targets shifted by one."""
    score = baseline.score
    baseline.score = lambda ids, *rest, **named: score(ids.roll(1, 1), *rest, **named)  # type: ignore[method-assign]


def coarse_log_softmax(baseline: SequenceModel) -> None:
    """The log-softmax of the score is taken in bfloat16."""

    def score(ids: Tensor, segment: int = 2048, targets: int | None = None) -> Tensor:
        logits = baseline.forward(ids)[:, :-1].bfloat16()
        nll = -logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2).float()
        return nll if targets is None else nll[:, -targets:]

    baseline.score = score  # type: ignore[method-assign]


def not_a_number(baseline: SequenceModel) -> None:
    """One weight is NaN."""
    with torch.no_grad():
        baseline.model.get_input_embeddings().weight[0, 0] = float("nan")


GRU_FAULTS: dict[str, tuple[Plant, set[str]]] = {
    "one token of the future": (hidden(one_token), {FUTURE, GRADIENT}),
    "one token of the future, in the embedding": (embedded(one_token), {FUTURE}),
    "the future inside a mini-batch": (hidden(mini_batch), {FUTURE, GRADIENT}),
    "a norm over time": (hidden(norm_over_time), {FUTURE, GRADIENT}),
    "a norm over the batch": (embedded(norm_over_batch), {BATCH}),
    "state lost between prefill and step": (lost_state, {STEPS, SPLIT, SCORE}),
    "targets shifted by one": (shifted_targets, {SCORE}),
    "log-softmax in bfloat16": (coarse_log_softmax, {SCORE}),
    "a NaN in the weights": (not_a_number, {"finite"}),
}
TTT_FAULTS: dict[str, tuple[Plant, set[str]]] = {
    "fast weights not updated in decode": (frozen_fast_weights, {STEPS}),
    "state lost between prefill and step": (lost_state, {STEPS, SPLIT, SCORE}),
    "one token of the future, in the embedding": (embedded(one_token), {FUTURE}),
}
