"""The gate names each fault that is planted in a model, and nothing in the sound one."""

from __future__ import annotations

import pytest
import torch

from baselines.config import SizeConfig, fit_to_size
from baselines.interface import SequenceModel
from baselines.registry import find
from harness.gate import run_gate
from tests.faults.models import GRU_FAULTS, TTT_FAULTS


def failed(baseline: SequenceModel) -> set[str]:
    return {check.name for check in run_gate(baseline).checks if not check.passed}


@pytest.fixture
def ttt() -> SequenceModel:
    torch.manual_seed(0)
    family = find("ttt")
    size = SizeConfig(60_000, 0.05, hidden_size=32, num_layers=2, head_dim=16)
    return family.build(fit_to_size("ttt", family.Config(family="ttt"), size, 256), 256)


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
