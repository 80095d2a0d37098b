"""The gate names each fault that is planted in a model, and nothing in the sound one."""

from __future__ import annotations

import pytest

from baselines.interface import SequenceModel
from harness.gate import run_gate
from tests.faults.models import GRU_FAULTS, TTT_FAULTS


def failed(baseline: SequenceModel) -> set[str]:
    return {check.name for check in run_gate(baseline).checks if not check.passed}


def test_sound_models_pass(gru: SequenceModel, ttt: SequenceModel) -> None:
    assert failed(gru) == failed(ttt) == set()


@pytest.mark.parametrize("fault", GRU_FAULTS)
def test_a_fault_of_a_gru_is_named(gru: SequenceModel, fault: str) -> None:
    plant, named = GRU_FAULTS[fault]
    plant(gru)
    assert named <= failed(gru)


@pytest.mark.parametrize("fault", TTT_FAULTS)
def test_a_fault_of_a_ttt_is_named(ttt: SequenceModel, fault: str) -> None:
    plant, named = TTT_FAULTS[fault]
    plant(ttt)
    assert named <= failed(ttt)


def test_faults_of_the_score_alone_fail_nothing_else(gru: SequenceModel) -> None:
    GRU_FAULTS["targets shifted by one"][0](gru)
    assert failed(gru) == {"score = forward"}
