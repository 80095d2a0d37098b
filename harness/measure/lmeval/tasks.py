"""Runs tasks of lm-eval on a model, among them `continuation`, which is made from the run's own test documents.

`continuation` asks which of four passages goes on where another one stopped: the true one, or one from another test
document. No test document was trained on, so the task is as clean as the split is.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from baselines.interface import SequenceModel
from harness.data.tokens import TokenDocument
from harness.records import LmEval

CONTINUATION = "continuation"
TEMPLATE = Path(__file__).with_name("continuation.yaml")
CONTEXT_BYTES, CHOICE_BYTES, CHOICES, MOST_QUESTIONS = 384, 96, 4, 200


def evaluate(
    baseline: SequenceModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    documents: Sequence[TokenDocument],
    folder: Path,
    limit: int | None = None,
) -> LmEval:
    """Every metric of `tasks`, with its standard error; ValueError for a task that lm-eval does not know.

    Task files (YAML in lm-eval's format) are also found in `folder`, where that of `continuation` is written.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError(f"tasks={list(tasks)} needs lm-eval: pip install 'ttt-bench[eval]'") from None
    from harness.measure.lmeval.model import HarnessLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if CONTINUATION in tasks:
        write_continuation(documents, folder)
    offline = set(tasks) <= {path.stem for path in folder.glob("*.yaml")}
    manager = TaskManager(include_path=str(folder), include_defaults=not offline)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise ValueError(
            f"tasks: lm-eval knows no {', '.join(unknown)}; `lm-eval ls tasks` lists its {len(manager.all_tasks)}"
        )
    found: Any = simple_evaluate(
        HarnessLM(baseline, tokenizer), tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=1000,
        log_samples=False, apply_chat_template=False,
    )  # fmt: skip
    return LmEval(
        results={task: _metrics(values) for task, values in found["results"].items()},
        samples={task: int(count["effective"]) for task, count in found["n-samples"].items()},
        fewshot={task: int(count or 0) for task, count in found["n-shot"].items()},
    )


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """Numbers alone, by name such as 'acc' and 'acc_stderr'; other filters than none stay in the name."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name.removesuffix(",none"): float(value) for name, value in numbers.items() if "," in name}


def write_continuation(documents: Sequence[TokenDocument], folder: Path) -> None:
    """Questions and task file into `folder`; ValueError where fewer than four documents are long enough."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = list(_questions(documents))
    data = folder / f"{CONTINUATION}.jsonl"
    for path, text in (
        (data, "".join(json.dumps(question) + "\n" for question in questions)),
        (folder / TEMPLATE.name, TEMPLATE.read_text().replace("DATA_FILE", str(data.resolve()))),
    ):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(path)


def _questions(documents: Sequence[TokenDocument]) -> list[dict[str, Any]]:
    """Questions spread evenly over the documents, drawn by a fixed generator."""
    size = CONTEXT_BYTES + CHOICE_BYTES
    long = [text for document in documents if len(text := document.text()) >= 2 * size]
    if len(long) < CHOICES:
        raise ValueError(f"task continuation needs {CHOICES} test documents of {2 * size} bytes; there are {len(long)}")
    draw = random.Random(0)
    questions = []
    for number in range(MOST_QUESTIONS):
        own = long[number % len(long)]
        others = draw.sample([text for text in long if text is not own], CHOICES - 1)
        begin = draw.randrange(len(own) - size + 1)
        choices = [_passage(own, begin + CONTEXT_BYTES)]
        choices += [_passage(other, draw.randrange(len(other) - CHOICE_BYTES + 1)) for other in others]
        order = draw.sample(range(CHOICES), CHOICES)
        questions.append(
            {
                "context": _decoded(own[begin : begin + CONTEXT_BYTES]),
                "choices": [choices[i] for i in order],
                "answer": order.index(0),
            }
        )
    return questions


def _passage(text: bytes, begin: int) -> str:
    return _decoded(text[begin : begin + CHOICE_BYTES])


def _decoded(part: bytes) -> str:
    return part.decode("utf-8", errors="replace")
