"""A model's own curves: averaged over documents and strides, recorded, and drawn where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.interface import SequenceModel
from baselines.registry import find
from harness.data.tokens import TokenDocument
from harness.measure.diagnostics import STRIDE, diagnose
from harness.records import Diagnostics, Record, RecordStore
from harness.report.collect import collect
from harness.report.figures import diagnostics


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


@pytest.mark.parametrize("options", [{"learnable_w0": False}, {"mini_batch_size": 128}])
def test_ttt_reports_no_change_relative_to_nothing(options: dict[str, int]) -> None:
    """Nor one after a mini-batch that never filled."""
    family = find("ttt")
    config = family.Config(hidden_size=32, num_layers=2, head_dim=16, intermediate_size=32, **options)
    found = diagnose(family.build(config, 256), documents(100), 96, "cpu").curves
    assert {name.split(": ")[0] for name in found} == {"inner loss", "inner learning rate"}
    assert all(np.isfinite(curve).all() for curve in found.values())


def test_a_group_that_a_model_lacks_leaves_its_place_empty(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for name, groups in (("a", ["loss", "rate"]), ("b", ["rate"])):
        curves = {f"{group}: mean": [[1.0, 2.0, 3.0]] for group in groups}
        store.append(Record(Diagnostics.kind, name, "ttt", 0, values=Diagnostics(2, STRIDE, curves)))
    drawn = diagnostics(collect([tmp_path]))
    assert drawn is not None
    shown = [(ax.get_title(loc="left"), ax.axison) for ax in drawn.figure.axes]
    assert shown == [("a: loss", True), ("a: rate", True), ("", False), ("b: rate", True)]
