"""What is benchmarked: which model, doing what, at which length, against whom."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from baselines.config import SizeConfig, fit_to_size
from baselines.interface import SequenceModel
from baselines.registry import find
from baselines.rivals.hf import transformers_llama, transformers_mamba
from baselines.rivals.official_ttt import official_ttt

VOCAB_SIZE = 256

_2M = SizeConfig(parameters=2_000_000, hidden_size=192, num_layers=4, head_dim=32)
_3M = SizeConfig(parameters=3_300_000, hidden_size=256, num_layers=4, head_dim=64)

MODELS: dict[str, tuple[str, dict[str, Any], SizeConfig]] = {
    "mamba-2m": ("mamba", {}, _2M),
    "transformer-2m": ("transformer", {}, _2M),
    "ttt_linear-3.3m": ("ttt", {"learner": "linear"}, _3M),
    "ttt_mlp-3.3m": ("ttt", {"learner": "mlp"}, _3M),
    "transformer-3.3m": ("transformer", {}, _3M),
}
"""Family, options and budget of each model; parameters are equal within a budget."""


@dataclass(frozen=True)
class Case:
    """One row: `ours` against `rival` (another implementation, or another of `MODELS`) at one kind of work.

    `ours` is one of `MODELS`, or of `OPERATORS` where the work is `operator`. `length` is that of the sequence, for
    decoding that of the context; `rounds` replaces the command's where a turn takes many seconds; `batch` counts the
    sequences.
    """

    ours: str
    work: str
    length: int
    rival: str
    rounds: int | None = None
    batch: int = 1

    @property
    def name(self) -> str:
        """Such as mamba-2m/train_step-2x1024/mambapy, or without 2x for one sequence."""
        rows = f"{self.batch}x" if self.batch > 1 else ""
        return f"{self.ours}/{self.work}-{rows}{self.length}/{self.rival}"

    @property
    def family(self) -> str:
        """Of our model; an operator is its own."""
        return MODELS[self.ours][0] if self.ours in MODELS else self.ours

    @property
    def same_function(self) -> bool:
        """Whether both sides are meant to compute the same."""
        return self.rival not in MODELS

    def shortened(self) -> Case:
        """An eighth of the length, and no longer a reason for fewer rounds."""
        return dataclasses.replace(self, length=self.length // 8, rounds=None)


CASES = [
    Case("selective_scan", "operator", 1024, "transformers", rounds=2),
    Case("selective_scan", "operator", 1024, "mambapy"),
    Case("selective_scan", "operator", 1024, "scan"),
    Case("ttt_linear", "operator", 2048, "scan"),
    Case("ttt_linear", "operator", 2048, "autograd"),
    Case("ttt_mlp", "operator", 2048, "scan"),
    Case("ttt_mlp", "operator", 2048, "autograd"),
    Case("mamba-2m", "train_step", 1024, "transformers", rounds=1),
    Case("mamba-2m", "train_step", 1024, "mambapy"),
    Case("mamba-2m", "train_step", 1024, "mambapy", rounds=6, batch=2),
    Case("mamba-2m", "train_step", 1024, "transformer-2m"),
    Case("mamba-2m", "prefill", 1024, "transformers"),
    Case("mamba-2m", "prefill", 1024, "mambapy"),
    Case("mamba-2m", "decode", 256, "transformers"),
    *(Case("transformer-2m", work, 1024, "transformers") for work in ("train_step", "prefill", "decode")),
    *(
        Case(learner, work, length, "official")
        for learner in ("ttt_linear-3.3m", "ttt_mlp-3.3m")
        for work, length in (("train_step", 2048), ("prefill", 2048), ("decode", 256))
    ),
    Case("ttt_linear-3.3m", "train_step", 2048, "transformer-3.3m"),
    Case("ttt_linear-3.3m", "train_step", 8192, "transformer-3.3m"),
]


def build(name: str) -> SequenceModel:
    """One of `MODELS` with fresh weights, the same every time."""
    family, options, size = MODELS[name]
    model_class = find(family)
    config = fit_to_size(name, model_class.Config(family=family, **options), size, VOCAB_SIZE)
    torch.manual_seed(0)
    baseline = model_class.build(config, VOCAB_SIZE)
    baseline.model.eval()
    return baseline


def rival_of(case: Case, ours: SequenceModel, official: Path | None) -> SequenceModel:
    """The other side of a case; NotInstalled if it is not here."""
    if case.rival in MODELS:
        return build(case.rival)
    if case.rival == "official":
        return official_ttt(ours, official)
    if MODELS[case.ours][0] == "transformer":
        return transformers_llama(ours)
    return transformers_mamba(ours, mambapy=case.rival == "mambapy")
