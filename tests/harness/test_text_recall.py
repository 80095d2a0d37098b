"""Zero-shot recall: what is fed is what is claimed, and models of known memory get exactly the cells within reach."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.interface import SequenceModel
from harness.data.tokens import TokenDocument
from harness.measure.recall.config import TASKS, RecallConfig
from harness.measure.recall.evaluation import judged, text_recall
from harness.measure.recall.tasks import CUE, check_text, haystack, trials
from harness.records import Conditions, Record, RecordStore, TextRecall
from harness.report.collect import collect
from harness.report.recall import Recall
from harness.statistics import wilson

LENGTHS, DEPTHS = [128, 256, 1500], [0, 30, 100]
MATCH = 8


class Copying(SequenceModel):
    """Goes on as the text went on where its last eight tokens stood before, as far back as `reach` tokens."""

    kernel_path = "copying"

    def __init__(self, reach: int | None = None) -> None:
        super().__init__(SimpleNamespace(config=SimpleNamespace(vocab_size=256), modules=list))  # type: ignore[arg-type]
        self.reach = reach

    @classmethod
    def build(cls, config: Any, vocab_size: int) -> Copying:
        raise NotImplementedError

    def flops(self, length: int, mode: Any) -> int:
        raise NotImplementedError

    def prefill(self, input_ids: Tensor, state: Any = None, logits_to_keep: int = 1) -> tuple[Tensor, Any]:
        seen = input_ids if state is None else torch.cat([state, input_ids], 1)
        logits = torch.zeros(len(seen), logits_to_keep, 256)
        for row, ids in enumerate(seen):
            text = bytes(ids.tolist())
            for i in range(logits_to_keep):
                end = len(text) - logits_to_keep + 1 + i
                known = text[max(0, end - (self.reach or end)) : end]
                place = known.rfind(known[-MATCH:], 0, len(known) - 1)
                if place >= 0:
                    logits[row, i, known[place + MATCH]] = 50.0
        return logits, seen


def documents(count: int = 8, length: int = 700) -> list[TokenDocument]:
    rng = np.random.default_rng(0)
    return [TokenDocument(f"d{i}", rng.integers(97, 123, length, dtype=np.uint8)) for i in range(count)]


def measured(model: SequenceModel, repeats: int = 3) -> TextRecall:
    def judge(rows: np.ndarray, targets: int) -> tuple[np.ndarray, np.ndarray]:
        return judged(model, torch.from_numpy(rows.astype(np.int64)), targets)

    config = RecallConfig(list(TASKS), LENGTHS, DEPTHS, repeats)
    return text_recall(judge, documents(), config, 9999, 64, lambda done, total: None)


def reported(values: TextRecall, folder: Path) -> Recall:
    store = RecordStore(folder)
    store.append(Record(TextRecall.kind, "copying", "copying", 0, values=values, conditions=Conditions()))
    return Recall(collect([folder]))


def test_perfect_memory_recalls_everything_at_any_length(tmp_path: Path) -> None:
    found = reported(measured(Copying()), tmp_path)
    for task in TASKS:
        assert (found.accuracy("copying", task, found.cells).value == 1).all()
        assert found.effective_length("copying", task) == LENGTHS[-1]
        assert found.gain("copying", task, found.by_length).value == pytest.approx([8.0] * 3)  # log2 of 256


def test_a_forgetful_model_recalls_exactly_what_is_within_its_reach(tmp_path: Path) -> None:
    reach = 140
    found = reported(measured(Copying(reach)), tmp_path)
    for task in TASKS:
        within = found.distances[task] + MATCH <= reach
        assert 0 < within.sum() < within.size
        accuracy = found.accuracy("copying", task, found.cells).value.reshape(within.shape)
        np.testing.assert_array_equal(accuracy, within.astype(float))
        gain = found.gain("copying", task, found.cells).value.reshape(within.shape)
        np.testing.assert_allclose(gain, 8.0 * within, atol=1e-6)
        assert found.effective_length("copying", task) == 128


def test_a_length_counts_only_if_all_shorter_ones_do(tmp_path: Path) -> None:
    values = measured(Copying())
    values.right["passkey"][1] = [[0] * values.repeats] * len(DEPTHS)
    found = reported(values, tmp_path)
    assert found.effective_length("copying", "passkey") == LENGTHS[0]
    assert found.effective_length("copying", "needle") == LENGTHS[-1]


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_what_is_claimed_and_answers_stand_nowhere_else(task: str) -> None:
    texts = documents()
    drawn = trials(task, texts, LENGTHS[-1], 4)
    assert len({trial.question.answer for trial in drawn}) == len({trial.text for trial in drawn}) == 4
    for trial in drawn:
        key, cue, answer = trial.question
        for length in LENGTHS:
            without = trial.row(length, None).tobytes()
            assert without == trial.text[len(trial.text) - length + len(cue) :] + cue + answer
            assert without.count(answer) == 1
            for depth in DEPTHS:
                row = trial.row(length, depth).tobytes()
                place, room = trial.place(length, depth), length - len(cue) - len(key)
                assert len(row) == length + len(answer)
                assert row.endswith(cue + answer)
                assert abs(place / room - depth / 100) <= 0.5 / room
                assert row[place : place + len(key)] == key
                assert row[:place] + row[place + len(key) :] == without[:place] + without[place + len(key) :]
                assert row.count(answer) == 2
                assert row.index(answer) == length - trial.distance(length, depth)
    if task == "repetition":
        assert all(any(t.question.key in d.ids.tobytes() for d in texts) for t in drawn)
        assert all(t.question.cue == t.question.key[:CUE] for t in drawn)


def test_draws_are_the_same_again_and_haystacks_those_of_every_task() -> None:
    first = {task: trials(task, documents(), 1500, 2) for task in TASKS}
    assert first == {task: trials(task, documents(), 1500, 2) for task in TASKS}
    assert len({drawn[0].text for drawn in first.values()}) == 1


def test_a_haystack_is_test_documents_one_after_the_other() -> None:
    import random

    texts = [document.ids.tobytes() for document in documents(3, 50)]
    for seed in range(20):
        text = haystack(random.Random(seed), documents(3, 50), 120)
        assert len(text) == 120
        assert any(text in a + b + c for a in texts for b in texts for c in texts if len({a, b, c}) == 3)


def test_segments_do_not_change_the_verdict_and_the_score_is_that_of_score(gru: SequenceModel) -> None:
    ids = torch.randint(256, (3, 60), generator=torch.Generator().manual_seed(0))
    nll, likeliest = judged(gru, ids, 20)
    np.testing.assert_array_equal(nll, gru.score(ids, targets=20).numpy())
    greedy = gru.forward(ids).argmax(-1)[:, 39:59]
    np.testing.assert_array_equal(likeliest, (greedy == ids[:, 40:]).numpy())
    parts = list(gru.read(ids, segment=7, targets=20))
    assert len(parts) > 2
    torch.testing.assert_close(torch.cat([aims for _, aims in parts], 1), ids[:, 40:])
    torch.testing.assert_close(torch.cat([p for p, _ in parts], 1), gru.forward(ids)[:, 39:59], atol=1e-5, rtol=0)


def test_a_nan_is_not_averaged_away() -> None:
    def judge(rows: np.ndarray, targets: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(rows), targets), np.nan), np.zeros((len(rows), targets), bool)

    with pytest.raises(ArithmeticError, match=r"an answer \(passkey, 128 tokens\) is not finite"):
        text_recall(judge, documents(), RecallConfig(["passkey"]), 128, None, lambda done, total: None)


def test_wilsons_interval_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for count, trials_ in ((0, 10), (3, 10), (10, 10), (41, 200)):
        low, high = wilson(np.array([count / trials_]), trials_)
        wanted = stats.binomtest(count, trials_).proportion_ci(0.95, method="wilson")
        assert (low[0], high[0]) == pytest.approx((wanted.low, wanted.high))


def test_text_that_does_not_do_is_an_error_in_one_line() -> None:
    with pytest.raises(ValueError, match="asks for 6000 tokens: all test documents together have 5600"):
        check_text(documents(), 6000)
    same = [TokenDocument("d", np.full(900, 97, np.uint8))]
    with pytest.raises(ValueError, match="1000 draws of repetition stood in the test documents more than once"):
        trials("repetition", same, 128, 1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tasks": ["pass"]}, "measure.recall.tasks is ['pass']: choose from passkey, needle, repetition"),
        ({"lengths": [64]}, "measure.recall.lengths is [64]: give rising lengths of at least 128"),
        ({"lengths": [256, 128]}, "give rising lengths"),
        ({"depths": [50, 120]}, "measure.recall.depths is [50, 120]: give rising percentages from 0 to 100"),
        ({"depths": []}, "measure.recall.depths is []"),
        ({"repeats": 0}, "measure.recall.repeats is 0: must be at least 1"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        RecallConfig(**options)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_contexts_double_up_to_max_length() -> None:
    assert RecallConfig().contexts(2048) == [128, 256, 512, 1024, 2048]
    assert RecallConfig().contexts(1000) == [128, 256, 512]
    assert RecallConfig(lengths=[300, 9000]).contexts(256) == [300, 9000]
    with pytest.raises(ValueError, match=r"begins at 128 tokens, measure\.max_length .* is 64"):
        RecallConfig().contexts(64)
