"""What a worker process can be asked to do with its one model; every method is a task of the main job.

A session lives in a process of its own, so that an out-of-memory, a NaN or a crash costs one row, not the comparison.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from baselines.config import Unsupported
from baselines.encoding import tokens_of
from baselines.interface import Encoded, SequenceModel, bytes_as_tokens
from baselines.registry import find
from harness.data.ngram import NGram
from harness.data.tokenizer import load_tokenizer
from harness.data.tokens import TokenDocument, TokenStore
from harness.gate import run_gate
from harness.jobs import Job, Shape
from harness.measure.clock import CpuClock
from harness.measure.diagnostics import diagnose
from harness.measure.dynamic.evaluation import dynamic_evaluation
from harness.measure.fixed_target import fixed_target
from harness.measure.nll_file import Advance, Score
from harness.measure.position import position_curve
from harness.measure.recall.evaluation import judged, text_recall
from harness.measure.scenarios import TrainStepScenario
from harness.measure.stand import Stand, require_within_limit
from harness.measure.window import windowed
from harness.records import (
    Diagnostics,
    Dynamic,
    FixedTarget,
    Gate,
    LmEval,
    Loaded,
    PositionCurve,
    TextRecall,
    Timed,
    Values,
    Window,
)
from harness.train.checkpoint import finished_training
from harness.train.loop import Progress, cpu_time
from harness.train.task import train_to_checkpoint


class Session(ABC):
    """What every worker answers."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self.job, self.config, self.progress = job, job.config, progress
        self.tokens = TokenStore.open(job.tokens_folder)

    @abstractmethod
    def score(self) -> Score:
        """The function that scores token ids."""

    def encode(self, text: bytes) -> Encoded:
        """Token ids of `text` and the bytes of each, in the corpus' tokens."""
        return bytes_as_tokens(text) if self.tokens.reads_bytes else Encoded(*tokens_of(self._tokenizer, text))

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self.tokens.tokenizer()

    def _bytes(self, tokens: int) -> int:
        """So many tokens of the test documents in bytes, which conventions count in."""
        return round(tokens * self.tokens.bytes_a_token("test"))

    @property
    def _trained_bytes(self) -> int | None:
        length = self.train_length()
        return None if length is None else self._bytes(length)

    def encode_within_limit(self, text: bytes) -> Encoded:
        """As far as the model may be asked in one go."""
        return self.encode(text)

    def train_length(self) -> int | None:
        """Tokens of the sequences that the model was trained on, where that is known."""
        return None

    def position(self) -> PositionCurve:
        """The position curve over the test documents."""
        return position_curve(
            self.score(), self.encode_within_limit, self._documents(), self._bytes(self.config.max_length),
            self._trained_bytes, self.job.folder / "nll.parquet", self.config.run_folder, self._advance(),
        )  # fmt: skip

    def fixed_target(self) -> FixedTarget:
        """The same targets of the test documents at every context."""
        return fixed_target(
            self.score(), self.encode, self._documents(), self._bytes(self.config.max_length),
            self.config.measure.targets, self._trained_bytes,
            self.job.folder / "fixed_target.parquet", self.config.run_folder, self._advance(),
        )  # fmt: skip

    def window(self) -> Window:
        """The test documents read through a window."""
        size = self.config.measure.window or self.config.train.length
        return windowed(
            self.score(), self.encode, self._documents(), self._bytes(self.config.max_length), self._bytes(size),
            self._bytes(self.config.measure.stride or size), self._trained_bytes, self.job.folder / "window.parquet",
            self.config.run_folder, self._advance(),
        )  # fmt: skip

    def _documents(self) -> Sequence[TokenDocument]:
        return self.tokens.documents("test")[: self.config.measure.documents]

    def _advance(self) -> Advance:
        return lambda done, total: self.progress({"done": done, "total": total})

    @abstractmethod
    def kernel_path(self) -> str:
        """The implementation that the last task ran on."""

    def cpu_seconds(self) -> float:
        """CPU time that this process and the compilers that it ran have used."""
        return cpu_time()


class FloorSession(Session):
    """An interpolated n-gram: what any language model must beat."""

    def score(self) -> Score:
        """Fit the n-gram of the order that its name ends with on the training documents."""
        order = int(self.job.name.split("-")[0])
        documents = (document.ids for document in self.tokens.documents("train"))
        ngram = NGram.fit(documents, order, self.tokens.vocab_size)
        return lambda rows, targets: np.stack([ngram.score(ids)[-targets:] for ids in rows])

    def kernel_path(self) -> str:
        """Counting in NumPy."""
        return "numpy"


class ModelSession(Session):
    """A language model: obtained once, then gated, scored and timed."""

    baseline: SequenceModel

    def __init__(self, job: Job, progress: Progress) -> None:
        super().__init__(job, progress)
        assert job.family is not None
        self.family = job.family

    def obtain(self) -> Values:
        """Load the model where a checkpoint is named or its training is finished; else train it (on)."""
        model_class = find(self.family.family)
        if self.family.checkpoint:
            self._take(model_class.load(self.family))
            if self.baseline.tokenizer is None:
                self._require_tokens_of_corpus(Path(self.family.checkpoint, "tokenizer.json"))
            parameters, limit = self.baseline.model.num_parameters(), self.baseline.context_limit
            return Loaded(parameters, str(self.family.checkpoint), limit)
        finished = finished_training(self.job.checkpoint)
        if finished is None:
            finished = train_to_checkpoint(self.job, self.tokens, self.progress)
        self._take(model_class.load(dataclasses.replace(self.family, checkpoint=str(self.job.checkpoint))))
        return finished

    def _require_tokens_of_corpus(self, tokenizer: Path) -> None:
        """ValueError if the loaded model knows other tokens, by number or by the tokenizer beside it."""
        known, given = self.baseline.vocab_size, self.tokens.vocab_size
        if known != given:
            raise ValueError(f"its vocabulary has {known} tokens, the corpus' {given}")
        if tokenizer.exists() and load_tokenizer(str(tokenizer)).get_vocab() != self._tokenizer.get_vocab():
            raise ValueError(f"it was trained on other tokens than the corpus': choose data.tokenizer={tokenizer}")

    def training_cost(self) -> float:
        """CPU seconds that training will take, by one step of a model that is thrown away."""
        baseline = find(self.family.family).build(self.family, self.tokens.vocab_size)
        torch.nn.Module.to(baseline.model, self.job.device)
        plain = dataclasses.replace(self.config.runtime, compile=False)  # compiling would outlast what it is to tell
        step = TrainStepScenario(baseline, self.job.device, self.config.train, plain)
        step.prepare()
        return self.config.train.steps * sum(step.turn(CpuClock()))

    def train_length(self) -> int | None:
        """The recipe's length, or what a loaded checkpoint of ours says."""
        training = finished_training(Path(self.family.checkpoint or self.job.checkpoint))
        return training.train_length if training else None

    def _take(self, baseline: SequenceModel) -> None:
        torch.nn.Module.to(baseline.model, self.job.device).eval()
        self.baseline = baseline

    @cached_property
    def measured(self) -> SequenceModel:
        """The model in the number format of the measurements."""
        dtype = getattr(torch, self.config.runtime.dtype)
        if dtype == torch.float32:
            return self.baseline
        measured = copy.copy(self.baseline)
        measured.model = copy.deepcopy(self.baseline.model).to(dtype)
        return measured

    def gate(self) -> Gate:
        """Every check, on the float32 weights."""
        return run_gate(self.baseline)

    def score(self) -> Score:
        """Nats of each token by the model."""

        def score(rows: np.ndarray, targets: int) -> np.ndarray:
            require_within_limit(self.baseline, rows.shape[1])
            ids = torch.from_numpy(rows.astype(np.int64)).to(self.job.device)
            return self.measured.score(ids, targets=targets).float().cpu().numpy()

        return score

    def encode(self, text: bytes) -> Encoded:
        """As the model reads `text`: in its own tokens, or the corpus'."""
        return super().encode(text) if self.baseline.tokenizer is None else self.baseline.encode(text)

    def encode_within_limit(self, text: bytes) -> Encoded:
        """As the model reads `text`, up to the end of its context."""
        ids, sizes = self.encode(text)
        return Encoded(ids[: self.baseline.context_limit], sizes[: self.baseline.context_limit])

    def _needs_bytes(self, measurement: str) -> None:
        if self.baseline.tokenizer is not None:
            raise Unsupported(f"{measurement} reads bytes, and the model has a tokenizer of its own")

    def dynamic(self) -> Dynamic:
        """The test documents read while the model goes on learning, in float32."""
        self._needs_bytes("dynamic")
        dynamic = self.config.measure.dynamic
        return dynamic_evaluation(
            self.baseline, self._documents()[: dynamic.documents], self.tokens.documents("train"), dynamic,
            min(dynamic.max_length or self.config.max_length, self.config.max_length), self.train_length(),
            self.job.folder / "dynamic.parquet", self.config.run_folder, self._advance(),
        )  # fmt: skip

    def text_recall(self) -> TextRecall:
        """Keys hidden in text of the test documents, asked for, of a model that reads bytes."""
        self._needs_bytes("text_recall")

        def judge(rows: np.ndarray, targets: int) -> tuple[np.ndarray, np.ndarray]:
            return judged(self.measured, torch.from_numpy(rows.astype(np.int64)).to(self.job.device), targets)

        return text_recall(
            judge, self._documents(), self.config.measure.recall, self.config.max_length, self.train_length(),
            self._advance(),
        )  # fmt: skip

    def lm_eval(self) -> LmEval:
        """The tasks of lm-eval, with the tokenizer that lies beside the model."""
        from harness.measure.lmeval.tasks import evaluate

        tokenizer = self.baseline.tokenizer or self.tokens.tokenizer()
        return evaluate(
            self.measured, tokenizer, self.config.tasks, self._documents(), self.job.folder / "tasks",
            self.config.measure.task_limit,
        )  # fmt: skip

    def diagnostics(self) -> Diagnostics:
        """What the model reports of itself on test documents."""
        return diagnose(self.baseline, self.tokens.documents("test"), self.config.max_length, self.job.device)

    def kernel_path(self) -> str:
        """The implementation that the last forward ran on."""
        return self.measured.kernel_path if "measured" in vars(self) else self.baseline.kernel_path

    @cached_property
    def stand(self) -> Stand:
        """Where the model is timed."""
        return Stand(self.baseline, self.measured, self.config, self.job.device)

    def warm(self, shape: Shape) -> None:
        """Prepare and warm a scenario."""
        self.stand.warm(shape)

    def turn(self, shape: Shape) -> list[float]:
        """Seconds of one turn of a warmed scenario."""
        return self.stand.turn(shape)

    def values(self, shape: Shape) -> Timed:
        """All that was measured of a scenario, which is then let go."""
        return self.stand.values(shape)
