"""Dynamic evaluation: it predicts before it learns, begins every document anew, and leaves the model as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from baselines.interface import SequenceModel
from harness.data.tokens import TokenDocument
from harness.measure.dynamic.adapted import AdaptedWeights
from harness.measure.dynamic.config import DynamicConfig
from harness.measure.dynamic.evaluation import Reader, dynamic_evaluation


def repeating(seed: int, length: int = 300) -> np.ndarray:
    """A phrase of seven letters over and over: easy to learn while reading."""
    return np.tile(np.random.default_rng(seed).integers(97, 123, 7, dtype=np.uint8), length)[:length]


def documents(count: int) -> list[TokenDocument]:
    return [TokenDocument(f"d{i}", repeating(i)) for i in range(count)]


def run(gru: SequenceModel, config: DynamicConfig, tmp_path: Path, count: int = 3) -> tuple[object, pd.DataFrame]:
    found = dynamic_evaluation(
        gru, documents(count), documents(2), config, 300, 32, tmp_path / "d.parquet", tmp_path, lambda *_: None
    )
    return found, pd.read_parquet(tmp_path / "d.parquet")


def weights_of(model: SequenceModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.model.named_parameters()}


@pytest.mark.parametrize("config", [DynamicConfig("sgd", segment=16), DynamicConfig("rms", segment=16)])
def test_it_learns_while_reading_and_leaves_the_model_as_it_was(
    gru: SequenceModel, config: DynamicConfig, tmp_path: Path
) -> None:
    before = weights_of(gru)
    found, table = run(gru, config, tmp_path)
    assert found.adapted_parameters == sum(p.numel() for p in gru.model.parameters())  # type: ignore[attr-defined]
    assert found.context == 16  # type: ignore[attr-defined]
    for _, row in table.iterrows():
        np.testing.assert_array_equal(row["nll"][:16], row["frozen_nll"][:16])
        assert row["nll"][-100:].mean() < row["frozen_nll"][-100:].mean() - 0.1
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in gru.model.named_parameters())


def test_every_document_begins_with_the_trained_weights(gru: SequenceModel, tmp_path: Path) -> None:
    _, three = run(gru, DynamicConfig("sgd", segment=16, learning_rates=[0.1]), tmp_path, 3)
    _, one = run(gru, DynamicConfig("sgd", segment=16, learning_rates=[0.1]), tmp_path, 1)
    np.testing.assert_array_equal(three["nll"][0], one["nll"][0])


def test_no_token_is_learned_from_before_it_is_scored(gru: SequenceModel) -> None:
    """Change a token: no earlier score moves, and its own segment is scored by the same weights."""
    config = DynamicConfig("sgd", segment=16)
    ids = repeating(0, 80)
    changed = ids.copy()
    changed[50] = 65
    with AdaptedWeights(gru.model, config) as weights:
        reader = Reader(gru, weights, 16, 16)
        one, other = reader.read(ids, 0.1), reader.read(changed, 0.1)
    np.testing.assert_array_equal(one[:49], other[:49])
    assert (one[49:] != other[49:]).any()


def test_frozen_reading_is_the_score_given_the_context(gru: SequenceModel) -> None:
    ids = repeating(1, 90)
    with AdaptedWeights(gru.model, DynamicConfig("sgd")) as weights:
        found = Reader(gru, weights, 16, 8).read(ids, None)
    for begin in range(0, 89, 16):
        left, end = max(0, begin - 8), min(begin + 16, 89)
        row = torch.from_numpy(ids[left : end + 1].astype(np.int64))[None]
        wanted = gru.score(row, targets=end - begin)[0].numpy()
        np.testing.assert_allclose(found[begin:end], wanted, atol=1e-5)


def test_one_sgd_step_is_krauses_rule(gru: SequenceModel) -> None:
    ids, config = repeating(2, 33), DynamicConfig("sgd", segment=16, decay=0.25)
    before = weights_of(gru)
    row = torch.from_numpy(ids[:17].astype(np.int64))[None]
    F.cross_entropy(gru.forward(row[:, :-1])[0], row[0, 1:]).backward()
    moved = {name: p.detach() - 0.1 * p.grad for name, p in gru.model.named_parameters()}
    gru.model.zero_grad()
    with AdaptedWeights(gru.model, config) as weights:
        reader = Reader(gru, weights, 16, 0)
        reader._segment(ids, 0).mean().backward()
        weights.step(0.1)
        after = weights_of(gru)
        for name in before:
            torch.testing.assert_close(after[name], moved[name])
        weights.step(0.1)
        for name, p in gru.model.named_parameters():
            torch.testing.assert_close(p, moved[name] + 0.25 * (before[name] - moved[name]))


def test_low_rank_additions_move_alone_and_are_taken_off(ttt: SequenceModel, tmp_path: Path) -> None:
    before = weights_of(ttt)
    ids = torch.randint(256, (1, 40))
    logits = ttt.forward(ids)
    found, _ = run(ttt, DynamicConfig("sgd", "lora", rank=2, segment=32, learning_rates=[0.3]), tmp_path, 1)
    assert 0 < found.adapted_parameters < sum(p.numel() for p in ttt.model.parameters()) / 2  # type: ignore[attr-defined]
    after = weights_of(ttt)
    assert before.keys() == after.keys()
    assert torch.equal(ttt.forward(ids), logits)


def test_the_last_quarter_of_the_mlps_moves_alone(ttt: SequenceModel) -> None:
    with AdaptedWeights(ttt.model, DynamicConfig("sgd", "last_quarter_mlp")) as weights:
        moving = {name for name, p in ttt.model.named_parameters() if p.requires_grad}
        assert moving
        assert all(".1." in name and "mlp" in name for name in moving)
        assert weights.count == sum(p.numel() for p in ttt.model.parameters() if p.requires_grad)


def test_a_model_without_such_weights_says_so(gru: SequenceModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"measure\.dynamic\.parameters=last_quarter_mlp: this model has no such"):
        run(gru, DynamicConfig("sgd", "last_quarter_mlp"), tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "adam"}, "measure.dynamic.method is 'adam': choose one of none, sgd, rms"),
        ({"parameters": "some"}, "choose one of all, lora, last_quarter_mlp"),
        ({"segment": 0}, "measure.dynamic.segment is 0"),
        ({"learning_rates": [0.0]}, "must be positive"),
        ({"decay": 2.0}, "between 0 and 1"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named.replace(".", r"\.").replace("[", r"\[")):
        DynamicConfig(**options)  # type: ignore[arg-type]
