"""The gate lets a sound model pass and names what is wrong with a broken one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from baselines.interface import SequenceModel, State
from harness.gate import run_gate


def failed(baseline: SequenceModel) -> set[str]:
    return {check.name for check in run_gate(baseline).checks if not check.passed}


def test_a_sound_model_passes_every_check(gru: SequenceModel) -> None:
    checks = run_gate(gru).checks
    assert len(checks) == 8
    assert all(check.passed for check in checks)


def test_float64_is_held_to_its_own_bound(gru: SequenceModel) -> None:
    gru.model.double()
    gate = run_gate(gru)
    assert all(check.passed for check in gate.checks)
    assert {check.bound for check in gate.checks} == {0.0, 1e-5, 1e-10}


def patched(change: Callable[[Tensor], Tensor]) -> Callable[[SequenceModel], None]:
    """Changes the embedded tokens [B, L, d] of every call."""

    def apply(baseline: SequenceModel) -> None:
        embed = baseline.model.embed
        original = embed.forward
        embed.forward = lambda ids: change(original(ids))

    return apply


def norm_over_time(x: Tensor) -> Tensor:
    return x / (1 + x.square().mean(1, keepdim=True))


def one_token_leak(x: Tensor) -> Tensor:
    return x + 1e-3 * x.roll(-1, dims=1)


def block_leak(x: Tensor) -> Tensor:
    """Tokens see the whole of their block of 16, as a mini-batch without a mask would let them."""
    blocks = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 16)).unflatten(1, (-1, 16))
    return x + 1e-3 * blocks.mean(2, keepdim=True).expand_as(blocks).flatten(1, 2)[:, : x.shape[1]]


def batch_leak(x: Tensor) -> Tensor:
    return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize("leak", [norm_over_time, one_token_leak, block_leak])
def test_a_leak_from_the_future_is_caught_twice(gru: SequenceModel, leak: Callable[[Tensor], Tensor]) -> None:
    patched(leak)(gru)
    assert {"causal: future changed"} <= failed(gru)


def test_a_leak_after_the_embedding_shows_in_the_gradient(gru: SequenceModel) -> None:
    forward = gru.model.gru.forward
    gru.model.gru.forward = lambda x, state=None: forward(one_token_leak(x), state)
    assert {"causal: future changed", "causal: gradient of the future"} <= failed(gru)


def test_a_row_that_sees_its_batch_is_caught(gru: SequenceModel) -> None:
    patched(batch_leak)(gru)
    assert "batch = row by row" in failed(gru)


def test_a_state_lost_between_prefill_and_step_is_caught(gru: SequenceModel) -> None:
    prefill = gru.prefill

    def forgetful(ids: Tensor, state: State | None = None, logits_to_keep: int = 1) -> tuple[Tensor, State]:
        return prefill(ids, None, logits_to_keep)

    gru.prefill = forgetful  # type: ignore[method-assign]
    assert {"prefill + steps = forward", "any split = forward", "score = forward"} <= failed(gru)


def test_a_score_shifted_by_one_is_caught(gru: SequenceModel) -> None:
    score = gru.score
    gru.score = lambda ids, segment=1024: score(ids.roll(1, 1), segment)  # type: ignore[method-assign]
    assert failed(gru) == {"score = forward"}


def test_nan_is_caught(gru: SequenceModel) -> None:
    with torch.no_grad():
        gru.model.embed.weight[0, 0] = float("nan")
    assert "finite" in failed(gru)


def through_fft(x: Tensor) -> Tensor:
    """The same numbers but for rounding, which mixes all of time."""
    return torch.fft.irfft(torch.fft.rfft(x, dim=1), x.shape[1], dim=1)


def before_the_cells(baseline: SequenceModel, change: Callable[[Tensor], Tensor]) -> None:
    baseline.model.gru.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))


def test_an_fft_is_judged_in_float64_where_it_is_declared(gru: SequenceModel) -> None:
    before_the_cells(gru, through_fft)
    causal = {"causal: future changed", "causal: gradient of the future"}
    assert failed(gru) == causal
    gru.exact_causality = False
    assert failed(gru) == set()
    found = {check.name: check.bound for check in run_gate(gru).checks if check.name.startswith("causal")}
    assert found == dict.fromkeys({*causal, "causal: float64 steps = forward"}, 1e-10)


@pytest.mark.parametrize("leak", [norm_over_time, one_token_leak, block_leak])
def test_a_leak_is_caught_in_float64_too(gru: SequenceModel, leak: Callable[[Tensor], Tensor]) -> None:
    before_the_cells(gru, leak)
    gru.exact_causality = False
    names = {"causal: future changed", "causal: gradient of the future", "causal: float64 steps = forward"}
    assert names <= failed(gru)


def test_a_model_that_cannot_continue_is_not_asked_to(gru: SequenceModel) -> None:
    type(gru).continues = False
    try:
        names = {check.name for check in run_gate(gru).checks}
    finally:
        type(gru).continues = True
    assert "any split = forward" not in names
    assert "prefill + steps = forward" in names
