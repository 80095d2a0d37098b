"""Behind lm-eval's interface a model gives what lm-eval's own adapter gives, and exact numbers at any length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baselines.config import SizeConfig, fit_to_size
from baselines.interface import SequenceModel
from baselines.registry import find
from harness.data.tokenizer import byte_tokenizer
from harness.data.tokens import TokenDocument
from harness.measure.lmeval.tasks import evaluate, write_continuation

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'ttt-bench[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from harness.measure.lmeval.model import HarnessLM

PAIRS = [
    ("the state of", " the union"), ("", "begins with nothing"), ("a", "b"), ("ends in spaces  ", "word"),
    ("a far longer context than that of the others, so that rows are padded", " x"), ("short", " and a long one"),
]  # fmt: skip
TEXTS = ["The State of the Union.", "a", "Été: bytes of more than one kind"]


def instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


@pytest.fixture(scope="module")
def llama() -> SequenceModel:
    torch.manual_seed(0)
    family = find("transformer")
    size = SizeConfig(60_000, 0.05, hidden_size=32, num_layers=2, head_dim=16)
    model = family.build(fit_to_size("transformer", family.Config(family="transformer"), size, 256), 256)
    model.model.eval()
    for parameter in model.model.parameters():  # far from even, so that greedy answers differ
        parameter.data.mul_(3 if parameter.ndim > 1 else 1)
    return model


@pytest.fixture(scope="module")
def both(llama: SequenceModel) -> tuple[HarnessLM, HFLM]:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "!"
    theirs = HFLM(pretrained=llama.model, tokenizer=tokenizer, max_length=512, batch_size=1, device="cpu")
    return HarnessLM(llama, tokenizer, batch_size=4), theirs


def test_log_likelihoods_are_those_of_lm_evals_own_adapter(both: tuple[HarnessLM, HFLM]) -> None:
    ours, theirs = (lm.loglikelihood(instances("loglikelihood", list(PAIRS)), disable_tqdm=True) for lm in both)
    np.testing.assert_allclose([score for score, _ in ours], [score for score, _ in theirs], atol=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_greedy_is_told(both: tuple[HarnessLM, HFLM]) -> None:
    ours, _ = both
    request = instances("generate_until", [("the state", {"until": [], "max_gen_toks": 4})])
    (text,) = ours.generate_until(request)
    ((_, greedy),) = ours.loglikelihood(instances("loglikelihood", [("the state", text)]), disable_tqdm=True)
    assert greedy or "\ufffd" in text


def test_rolling_log_likelihoods_are_those_of_lm_evals_own_adapter(both: tuple[HarnessLM, HFLM]) -> None:
    requests = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    ours, theirs = (lm.loglikelihood_rolling(requests, disable_tqdm=True) for lm in both)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_generation_is_that_of_lm_evals_own_adapter(both: tuple[HarnessLM, HFLM]) -> None:
    options = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    requests = instances("generate_until", [("the state of", options), ("a", options)])
    ours, theirs = (lm.generate_until(requests, disable_tqdm=True) for lm in both)
    assert ours == theirs


def test_a_stop_string_ends_the_text(both: tuple[HarnessLM, HFLM]) -> None:
    ours, _ = both
    (whole,) = ours.generate_until(instances("generate_until", [("the state", {"until": [], "max_gen_toks": 9})]))
    stop = whole[3]
    (cut,) = ours.generate_until(instances("generate_until", [("the state", {"until": [stop], "max_gen_toks": 9})]))
    assert cut == whole.split(stop)[0]
    with pytest.raises(ValueError, match="decodes greedily"):
        ours.generate_until(instances("generate_until", [("a", {"temperature": 0.7})]))


def test_a_long_text_is_not_cut(llama: SequenceModel) -> None:
    text = "".join(chr(97 + i * i % 26) for i in range(2500))
    (found,) = HarnessLM(llama, byte_tokenizer()).loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]))
    ids = torch.tensor([[10, *text.encode()]])
    with torch.inference_mode():
        given = llama.forward(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    assert found == pytest.approx(float(given.double().sum()), abs=1e-2)


def documents(count: int) -> list[TokenDocument]:
    rng = np.random.default_rng(0)
    return [TokenDocument(f"d{i}", rng.integers(97, 123, 2000, dtype=np.uint8)) for i in range(count)]


def test_our_task_runs_offline_and_knows_its_answer(llama: SequenceModel, tmp_path: Path) -> None:
    texts = documents(6)
    found = evaluate(llama, byte_tokenizer(), ["continuation"], texts, tmp_path, limit=12)
    assert found.samples == {"continuation": 12}
    assert 0 <= found.results["continuation"]["acc"] <= 1
    assert found.results["continuation"]["acc_stderr"] > 0
    whole = ["".join(map(chr, document.ids)) for document in texts]
    questions = [json.loads(line) for line in (tmp_path / "continuation.jsonl").read_text().splitlines()]
    assert len(questions) == 200
    assert len({question["answer"] for question in questions}) == 4
    for question in questions:
        right = [any(question["context"] + choice in text for text in whole) for choice in question["choices"]]
        assert right == [i == question["answer"] for i in range(4)]


def test_too_few_documents_and_unknown_tasks_are_errors_in_one_line(
    llama: SequenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thousands of files that lm-eval ships are asked for, and left unread."""
    asked: list[bool] = []

    def manager(include_path: str, include_defaults: bool) -> TaskManager:
        asked.append(include_defaults)
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", manager)
    with pytest.raises(ValueError, match="task continuation needs 4 test documents of 960 bytes; there are 3"):
        write_continuation(documents(3), tmp_path)
    with pytest.raises(ValueError, match=r"tasks: lm-eval knows no no_such_task; .* lists its \d+"):
        evaluate(llama, byte_tokenizer(), ["no_such_task"], [], tmp_path)
    assert asked == [True]
