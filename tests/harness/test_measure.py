"""Timing under a fake clock, memory, and the position curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from baselines.interface import Encoded, SequenceModel, bytes_as_tokens
from harness.data.tokens import TokenDocument
from harness.measure.clock import WallClock
from harness.measure.memory import peak_bytes
from harness.measure.position import position_curve
from harness.measure.scenarios import DecodeScenario, PrefillScenario, TrainStepScenario
from harness.train.config import TrainConfig


class WorkClock:
    """A clock that moves only when the model works: one second a call, ten a call of more than one token."""

    def __init__(self, baseline: SequenceModel) -> None:
        self.now, self.calls = 0.0, 0
        baseline.model.register_forward_hook(self._tick, with_kwargs=True)

    def _tick(self, module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, object], out: object) -> None:
        self.now += 10.0 if args[0].shape[1] > 1 else 1.0
        self.calls += 1

    def mark(self) -> float:
        return self.now

    def seconds(self, marks: list[float]) -> list[float]:
        return WallClock().seconds(marks)


def test_decode_times_each_token_and_never_the_prefill(gru: SequenceModel) -> None:
    clock = WorkClock(gru)
    scenario = DecodeScenario(gru, "cpu", batch=2, length=9, tokens=5)
    scenario.warm()
    assert scenario.take_turn(clock) == [1.0] * 5
    assert scenario.take_turn(clock) == [1.0] * 5
    values = scenario.values()
    assert values.seconds == [1.0] * 10
    assert values.context == 9
    assert values.state_bytes == 2 * 16 * 4
    assert values.flops == 2 * gru.flops(9, "step")


def test_prefill_times_one_call_without_the_warm_up(gru: SequenceModel) -> None:
    clock = WorkClock(gru)
    scenario = PrefillScenario(gru, "cpu", batch=1, length=9)
    scenario.warm()
    before = clock.calls
    assert scenario.take_turn(clock) == [10.0]
    assert clock.calls == before + 1
    assert scenario.values().seconds == [10.0]


def test_a_timed_training_step_leaves_the_weights(gru: SequenceModel) -> None:
    before = [p.clone() for p in gru.model.parameters()]
    clock = WorkClock(gru)
    scenario = TrainStepScenario(gru, "cpu", TrainConfig(tokens=1024, length=16, batch_size=2), autocast=False)
    scenario.warm()
    assert scenario.take_turn(clock) == [10.0]
    assert all(torch.equal(a, b) for a, b in zip(before, gru.model.parameters(), strict=True))
    assert not gru.model.training


def test_peak_memory_is_that_of_the_call() -> None:
    size = 64 * 2**20
    leavings = [torch.ones(size // 4) for _ in range(2)]
    del leavings
    peak = peak_bytes(lambda: torch.ones(size // 4), "cpu")
    assert peak is not None
    assert 0.95 * size <= peak < 1.2 * size
    assert peak_bytes(lambda: None, "cpu") < size / 8  # type: ignore[operator]


def document(name: str, text: bytes) -> TokenDocument:
    return TokenDocument(name, np.frombuffer(text, np.uint8))


def in_bytes(document: TokenDocument, tokens: int) -> Encoded:
    return bytes_as_tokens(document.text(tokens))


def test_the_curve_keeps_every_position_of_every_document(tmp_path: Path) -> None:
    documents = [document("a", b"abcdef"), document("b", b"xyz")]
    told: list[tuple[int, int]] = []
    curve = position_curve(
        lambda rows, targets: rows[:, -targets:] / 2,
        in_bytes,
        documents,
        5,
        4,
        tmp_path / "x" / "nll.parquet",
        tmp_path,
        lambda *t: told.append(t),
    )
    assert (curve.documents, curve.tokens, curve.max_length, curve.train_length) == (2, 6, 5, 4)
    table = pq.read_table(tmp_path / curve.nll_file).to_pydict()
    assert table["document"] == ["a", "b"]
    assert table["nll"] == [[b / 2 for b in b"bcde"], [b / 2 for b in b"yz"]]
    assert table["target_bytes"] == [[1, 1, 1, 1], [1, 1]]
    assert told == [(5, 8), (8, 8)]


def test_a_nan_is_not_averaged_away(tmp_path: Path) -> None:
    def score(rows: np.ndarray, targets: int) -> np.ndarray:
        return np.where(np.arange(targets) == 2, np.nan, 1.0)[None]

    documents = [document("a", b"abcdef")]
    with pytest.raises(ArithmeticError, match="NLL of a is not finite at position 2"):
        position_curve(score, in_bytes, documents, 9, None, tmp_path / "n", tmp_path, lambda *_: None)


def test_a_tokenizer_reads_the_same_bytes_and_its_tokens_keep_their_sizes(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def in_twos(document: TokenDocument, tokens: int) -> Encoded:
        text = document.text(tokens)
        pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
        return Encoded(np.array([pair[0] for pair in pairs]), np.array([len(pair) for pair in pairs]))

    def score(rows: np.ndarray, targets: int) -> np.ndarray:
        return rows[:, -targets:] / 2

    documents = [document("a", b"abcdefgh"), document("b", b"xyz")]
    path = tmp_path / "nll.parquet"
    curve = position_curve(score, in_twos, documents, 7, None, path, tmp_path, lambda *t: told.append(t))
    assert (curve.documents, curve.tokens, curve.bytes) == (2, 4, 10)
    table = pq.read_table(path).to_pydict()
    assert table["nll"] == [[b / 2 for b in b"ceg"], [ord("z") / 2]]
    assert table["target_bytes"] == [[2, 2, 1], [1]]
    assert table["first_bytes"] == [2, 2]
    assert told == [(7, 10), (10, 10)]
