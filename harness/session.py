"""What a worker process can be asked to do with its one model; every method is a task of the main job.

A session lives in a process of its own, so that an out-of-memory, a NaN or a crash costs one row, not the comparison.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from baselines.config import Unsupported
from baselines.interface import Encoded, SequenceModel
from baselines.registry import find
from harness.data.batches import training_batches
from harness.data.ngram import NGram
from harness.data.tokens import TokenDocument, TokenStore
from harness.gate import run_gate
from harness.jobs import Job, Shape
from harness.measure.clock import CpuClock, clock_for
from harness.measure.diagnostics import diagnose
from harness.measure.dynamic.evaluation import dynamic_evaluation
from harness.measure.fixed_target import fixed_target
from harness.measure.nll_file import Advance, Score
from harness.measure.position import position_curve
from harness.measure.recall.evaluation import judged, text_recall
from harness.measure.scenarios import DecodeScenario, PrefillScenario, Scenario, TrainStepScenario
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
    Training,
    Values,
    Window,
)
from harness.train.checkpoint import finished_training, save_checkpoint
from harness.train.loop import Trainer
from harness.tuning import trained_before

Progress = Callable[[dict[str, Any]], None]


class Session(ABC):
    """What every worker answers."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self.job, self.config, self.progress = job, job.config, progress
        self.tokens = TokenStore.open(job.tokens_folder)

    @abstractmethod
    def score(self) -> Score:
        """The function that scores token ids."""

    def encode(self, document: TokenDocument, tokens: int) -> Encoded:
        """The ids of a document's first so many tokens, and the bytes of each."""
        return Encoded(document.ids[:tokens].astype(np.int64), document.bytes_of(0, tokens).astype(np.int64))

    def train_length(self) -> int | None:
        """Tokens of the sequences that the model was trained on, where that is known."""
        return None

    def position(self) -> PositionCurve:
        """The position curve over the test documents."""
        return position_curve(
            self.score(), self.encode, self._documents(), self.config.max_length, self.train_length(),
            self.job.folder / "nll.parquet", self.config.run_folder, self._advance(),
        )  # fmt: skip

    def fixed_target(self) -> FixedTarget:
        """The same targets of the test documents at every context."""
        return fixed_target(
            self.score(), self._documents(), self.config.max_length, self.config.measure.targets, self.train_length(),
            self.job.folder / "fixed_target.parquet", self.config.run_folder, self._advance(),
        )  # fmt: skip

    def window(self) -> Window:
        """The test documents read through a window."""
        size = self.config.measure.window or self.config.train.length
        return windowed(
            self.score(), self._documents(), self.config.max_length, size, self.config.measure.stride or size,
            self.train_length(), self.job.folder / "window.parquet", self.config.run_folder, self._advance(),
        )  # fmt: skip

    def _documents(self) -> Sequence[TokenDocument]:
        return self.tokens.documents("test")[: self.config.measure.documents]

    def _advance(self) -> Advance:
        return lambda done, total: self.progress({"done": done, "total": total})

    @abstractmethod
    def kernel_path(self) -> str:
        """The implementation that the last task ran on."""

    def cpu_seconds(self) -> float:
        """CPU time that this process has used."""
        return time.process_time()


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
        self.scenarios: dict[Shape, Scenario] = {}

    @property
    def checkpoint(self) -> Path:
        """Folder of the finished model."""
        return self.job.folder / "checkpoint"

    def obtain(self) -> Values:
        """Load the model where a checkpoint is named or its training is finished; else train it (on)."""
        model_class = find(self.family.family)
        if self.family.checkpoint:
            self._take(model_class.load(self.family))
            if self.baseline.tokenizer is None and self.baseline.vocab_size != self.tokens.vocab_size:
                raise ValueError(
                    f"its vocabulary has {self.baseline.vocab_size} tokens, the corpus' {self.tokens.vocab_size}"
                )
            parameters, limit = self.baseline.model.num_parameters(), self.baseline.context_limit
            return Loaded(parameters, str(self.family.checkpoint), limit)
        finished = finished_training(self.checkpoint)
        if finished is None:
            finished = self._train(model_class)
        self._take(model_class.load(dataclasses.replace(self.family, checkpoint=str(self.checkpoint))))
        return finished

    def training_cost(self) -> float:
        """CPU seconds that training will take, by one step of a model that is thrown away."""
        baseline = find(self.family.family).build(self.family, self.tokens.vocab_size)
        torch.nn.Module.to(baseline.model, self.job.device)
        step = TrainStepScenario(baseline, self.job.device, self.config.train, self._autocast)
        step.prepare()
        return self.config.train.steps * sum(step.turn(CpuClock()))

    def train_length(self) -> int | None:
        """The recipe's length, or what a loaded checkpoint of ours says."""
        training = finished_training(Path(self.family.checkpoint or self.checkpoint))
        return training.train_length if training else None

    def _train(self, model_class: type[SequenceModel]) -> Training:
        accelerator = self._accelerator()
        torch.manual_seed(self.config.seed)
        baseline = self._beginning(model_class)
        recipe = self.config.train
        batches = training_batches(self.tokens, recipe.length, recipe.batch_size, self.config.seed)
        trainer = Trainer(baseline, batches, recipe, self.job.folder / "resume.pt", accelerator, self.progress)
        training = trainer.run()
        training.checkpoint = str(self.checkpoint.relative_to(self.config.run_folder))
        if accelerator.is_main_process:
            save_checkpoint(self.checkpoint, lambda folder: self._save(baseline, folder), training)
            (self.job.folder / "resume.pt").unlink(missing_ok=True)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return training

    def _beginning(self, model_class: type[SequenceModel]) -> SequenceModel:
        """The model before its training: of random weights, or what another run made of it."""
        recipe, vocab_size = self.config.train, self.tokens.vocab_size
        if recipe.init_from is None:
            return model_class.build(self.family, vocab_size)
        folder = trained_before(recipe.init_from, self.config.seed, self.job.name)
        baseline = model_class.load(dataclasses.replace(self.family, checkpoint=str(folder)))
        found, wanted = baseline.model.num_parameters(), self.family.parameters(vocab_size)
        if found != wanted:
            raise ValueError(
                f"train.init_from: {folder} has {found:,} parameters, {self.job.name} is to have {wanted:,}:"
                " give the size and options that it was trained with"
            )
        return baseline

    def _accelerator(self) -> Accelerator:
        if "WORLD_SIZE" in os.environ:  # under torchrun every model's group of workers needs a store of its own
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
            os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1 + self.job.index)
        precision = "bf16" if self._autocast else "no"
        return Accelerator(cpu=self.job.device == "cpu", mixed_precision=precision)

    def _save(self, baseline: SequenceModel, folder: Path) -> None:
        baseline.save(folder)
        self.tokens.tokenizer().save_pretrained(folder)

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
            ids = torch.from_numpy(rows.astype(np.int64)).to(self.job.device)
            return self.measured.score(ids, targets=targets).float().cpu().numpy()

        return score

    def encode(self, document: TokenDocument, tokens: int) -> Encoded:
        """As the model reads that text, up to the end of its context."""
        brings = self.baseline.tokenizer is not None
        ids, sizes = self.baseline.encode(document.text(tokens)) if brings else super().encode(document, tokens)
        return Encoded(ids[: self.baseline.context_limit], sizes[: self.baseline.context_limit])

    def fixed_target(self) -> FixedTarget:
        """As `Session`, of a model that reads bytes."""
        self._needs_bytes("fixed_target")
        return super().fixed_target()

    def window(self) -> Window:
        """As `Session`, of a model that reads bytes."""
        self._needs_bytes("window")
        return super().window()

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
        self._needs_bytes("lm_eval")
        from harness.measure.lmeval.tasks import evaluate

        return evaluate(
            self.measured, self.tokens.tokenizer(), self.config.tasks, self._documents(), self.job.folder / "tasks",
            self.config.measure.task_limit,
        )  # fmt: skip

    def diagnostics(self) -> Diagnostics:
        """What the model reports of itself on test documents."""
        return diagnose(self.baseline, self.tokens.documents("test"), self.config.max_length, self.job.device)

    def kernel_path(self) -> str:
        """The implementation that the last forward ran on."""
        return self.measured.kernel_path if "measured" in vars(self) else self.baseline.kernel_path

    def warm(self, shape: Shape) -> None:
        """Prepare and warm a scenario."""
        self.scenarios[shape] = self._scenario(shape)
        self.scenarios[shape].warm()

    def _scenario(self, shape: Shape) -> Scenario:
        measure, device = self.config.measure, self.job.device
        asked = shape.length + (measure.decode_tokens if shape.kind == "decode" else 0)
        limit = self.baseline.context_limit
        if limit is not None and asked > limit:
            raise Unsupported(f"{asked} tokens: the model's context ends at {limit}")
        if shape.kind == "prefill":
            return PrefillScenario(self.measured, device, shape.batch, shape.length)
        if shape.kind == "decode":
            return DecodeScenario(self.measured, device, shape.batch, shape.length, measure.decode_tokens)
        return TrainStepScenario(self.baseline, device, self.config.train, self._autocast)

    @property
    def _autocast(self) -> bool:
        return self.config.runtime.dtype == "bfloat16"

    def turn(self, shape: Shape) -> list[float]:
        """Seconds of one turn of a warmed scenario."""
        return self.scenarios[shape].take_turn(clock_for(self.job.device))

    def values(self, shape: Shape) -> Values:
        """All that was measured of a scenario, which is then let go."""
        return self.scenarios.pop(shape).values()
