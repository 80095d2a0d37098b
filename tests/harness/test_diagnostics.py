"""A model's own curves: averaged over documents and strides, recorded, and drawn where there are any."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.interface import SequenceModel
from baselines.registry import find
from harness.data.tokens import TokenDocument
from harness.measure.diagnostics import STRIDE, diagnose


def documents(*lengths: int) -> list[TokenDocument]:
    return [TokenDocument(str(n), np.arange(n, dtype=np.uint8)) for n in lengths]


def test_points_are_means_over_documents_and_strides(gru: SequenceModel) -> None:
    def curves(ids: Tensor) -> dict[str, Tensor]:
        ramp = torch.arange(ids.shape[1], dtype=torch.float32)
        return {"ramp: by layer": torch.stack([ramp, ramp + len(told)])}

    told: list[int] = [0]
    gru.diagnostics = lambda ids: told.append(ids.shape[1]) or curves(ids)  # type: ignore[method-assign, func-returns-value]
    found = diagnose(gru, documents(3 * STRIDE + 5, STRIDE, 3 * STRIDE + 9), 3 * STRIDE + 3, "cpu")
    assert told == [0, 3 * STRIDE + 3, 3 * STRIDE + 3]
    assert found.documents == 2
    middle = [(STRIDE - 1) / 2 + STRIDE * i for i in range(3)]
    assert found.curves["ramp: by layer"] == [pytest.approx(middle), pytest.approx([m + 2.5 for m in middle])]


def test_a_family_without_any_reports_none(gru: SequenceModel) -> None:
    assert diagnose(gru, documents(40), 32, "cpu").curves == {}


@pytest.mark.parametrize("learner", ["linear", "mlp"])
def test_ttt_reports_losses_that_fall_by_learning(learner: str) -> None:
    family = find("ttt")
    torch.manual_seed(0)
    config = family.Config(learner=learner, hidden_size=32, num_layers=2, head_dim=16, intermediate_size=32)
    found = diagnose(family.build(config, 256), documents(100), 96, "cpu").curves
    assert {name.split(": ")[0] for name in found} == {"inner loss", "|W - W0| / |W0|", "inner learning rate"}
    assert all(np.shape(curve) == (2, 96 // STRIDE) for curve in found.values())
    initial, after = (np.array(found[f"inner loss: {name}"]) for name in ("W0", "after the token's step"))
    assert (after < initial).all()
