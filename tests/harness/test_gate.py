"""The gate lets a sound model pass and holds it to the bounds of its number format; `tests/faults` breaks models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baselines.interface import SequenceModel
from harness.gate import run_gate
from tests.faults.models import FUTURE, GRADIENT, Change, mini_batch, norm_over_time, one_token

FLOAT64_STEPS = "causal: float64 steps = forward"


def test_a_sound_model_passes_every_check(gru: SequenceModel) -> None:
    checks = run_gate(gru).checks
    assert len(checks) == 8
    assert all(check.passed for check in checks)


def test_float64_is_held_to_its_own_bound(gru: SequenceModel) -> None:
    gru.model.double()
    gate = run_gate(gru)
    assert all(check.passed for check in gate.checks)
    assert {check.bound for check in gate.checks} == {0.0, 1e-5, 1e-10}


def test_a_model_that_cannot_continue_is_not_asked_to(gru: SequenceModel) -> None:
    type(gru).continues = False
    try:
        names = {check.name for check in run_gate(gru).checks}
    finally:
        type(gru).continues = True
    assert "any split = forward" not in names
    assert "prefill + steps = forward" in names


def through_fft(x: Tensor) -> Tensor:
    """The same numbers but for rounding, which mixes all of time."""
    return torch.fft.irfft(torch.fft.rfft(x, dim=1), x.shape[1], dim=1)


def before_the_cells(gru: SequenceModel, change: Change) -> None:
    """Of the model and of every copy of it."""
    gru.model.gru.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))


def failed(gru: SequenceModel) -> set[str]:
    return {check.name for check in run_gate(gru).checks if not check.passed}


def test_an_fft_is_judged_in_float64_where_it_is_declared(gru: SequenceModel) -> None:
    before_the_cells(gru, through_fft)
    assert failed(gru) == {FUTURE, GRADIENT}
    gru.exact_causality = False
    assert failed(gru) == set()
    found = {check.name: check.bound for check in run_gate(gru).checks if check.name.startswith("causal")}
    assert found == dict.fromkeys((FUTURE, GRADIENT, FLOAT64_STEPS), 1e-10)


@pytest.mark.parametrize("leak", [norm_over_time, one_token, mini_batch])
def test_a_leak_is_caught_in_float64_too(gru: SequenceModel, leak: Change) -> None:
    before_the_cells(gru, leak)
    gru.exact_causality = False
    assert {FUTURE, GRADIENT, FLOAT64_STEPS} <= failed(gru)
