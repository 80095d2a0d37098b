"""The gate lets a sound model pass and holds it to the bounds of its number format; `tests/faults` breaks models."""

from __future__ import annotations

from baselines.interface import SequenceModel
from harness.gate import run_gate


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
