"""Faults behind the model: in how scores become a perplexity, how work becomes seconds, how text is held out.

Each check is run twice: on the project's own function, which must pass, and on the faulty one, which must not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from baselines.interface import SequenceModel
from harness.data import documents as data
from harness.data.config import DataConfig
from harness.data.tokens import TokenStore
from harness.measure.clock import Clock
from harness.measure.nll_file import finite
from harness.measure.scenarios import DecodeScenario, PrefillScenario
from harness.statistics import Estimate, Floats, bucket_sums, document_weights, estimate
from tests.harness.test_measure import WorkClock


def pooled_over_tokens(function: Callable[[Floats, Floats, Floats], Estimate]) -> None:
    """A document of 1,000 easy tokens and four of ten hard ones: the mean is over tokens."""
    tokens = np.array([[1000.0], *[[10.0]] * 4])
    nll = tokens * np.array([[1.0], *[[3.0]] * 4])
    assert function(nll, tokens, document_weights(5)).value[0] == pytest.approx(1120 / 1040)


def mean_of_means(nll: Floats, units: Floats, weights: Floats) -> Estimate:
    """Every document (or window) counts the same, however short."""
    return estimate(nll / units, np.ones_like(units), weights)


def test_a_mean_of_means_is_caught() -> None:
    pooled_over_tokens(estimate)
    with pytest.raises(AssertionError):
        pooled_over_tokens(mean_of_means)


def tells_of_nan(kept: Callable[[Floats, str, int], Floats], sums: Callable[..., Floats]) -> None:
    """A NaN is an error when it is scored, and stays a NaN in the sums of its own bucket alone."""
    nll = np.array([1.0, np.nan, 1.0, 1.0])
    with pytest.raises(ArithmeticError):
        kept(nll, "document", 0)
    assert np.isnan(sums(nll[None], np.array([4]), np.array([1, 3, 5]))[0]).tolist() == [True, False]


def test_a_nan_averaged_away_is_caught() -> None:
    tells_of_nan(finite, bucket_sums)
    with pytest.raises(pytest.fail.Exception):
        tells_of_nan(lambda nll, *_: np.nan_to_num(nll), bucket_sums)
    with pytest.raises(AssertionError):
        tells_of_nan(finite, lambda nll, *rest: bucket_sums(np.nan_to_num(nll), *rest))


class WarmsInside(PrefillScenario):
    """The first, slow call belongs to the timed ones."""

    def warm(self) -> None:
        super().warm()
        self.cold = True

    def _work(self) -> tuple[Tensor, object]:
        if getattr(self, "cold", False):
            self.cold = False
            super()._work()
        return super()._work()


class CountsThePrefill(DecodeScenario):
    """The first token's time holds the prefill of its context."""

    def _work(self, clock: Clock | None = None) -> list[object]:
        marks = [clock.mark()] if clock else []
        _, state = self.baseline.prefill(self.context)
        for i in range(self.tokens):
            _, state = self.baseline.step(self.inputs[:, i : i + 1], state)
            if clock:
                marks.append(clock.mark())
        return marks


def times_prefills_alone(scenario: type[PrefillScenario], model: SequenceModel) -> None:
    clock, timed = WorkClock(model), scenario(model, "cpu", 1, 9)
    timed.warm()
    assert timed.take_turn(clock) + timed.take_turn(clock) == [10.0, 10.0]


def times_steps_alone(scenario: type[DecodeScenario], model: SequenceModel) -> None:
    clock, timed = WorkClock(model), scenario(model, "cpu", 1, 9, 3)
    timed.warm()
    assert timed.take_turn(clock) == [1.0] * 3


def test_warm_up_inside_the_timing_is_caught(gru: SequenceModel) -> None:
    times_prefills_alone(PrefillScenario, gru)
    with pytest.raises(AssertionError):
        times_prefills_alone(WarmsInside, gru)


def test_a_prefill_counted_as_a_token_is_caught(gru: SequenceModel) -> None:
    times_steps_alone(DecodeScenario, gru)
    with pytest.raises(AssertionError):
        times_steps_alone(CountsThePrefill, gru)


def holds_out_texts(root: Path) -> None:
    """No text of the test split stands in training, under whatever name or line ends."""
    folder = root / "texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"text number {i}\nof many")
        (folder / f"copy {i}.txt").write_text(f"text number {i}\r\nof many")
    store = TokenStore.build(DataConfig("folder", str(folder), test_fraction=0.4), root)
    train, test = (
        {bytes(document.ids).split()[2] for document in store.documents(split)} for split in ("train", "test")
    )
    assert train
    assert test
    assert not train & test


def test_test_documents_in_training_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sound", "faulty"):
        (tmp_path / name).mkdir()
    holds_out_texts(tmp_path / "sound")
    by_name = data.split_of
    monkeypatch.setattr(
        data, "split_of", lambda document, config: by_name(data.Document("", document.name.encode()), config)
    )
    with pytest.raises(AssertionError):
        holds_out_texts(tmp_path / "faulty")
