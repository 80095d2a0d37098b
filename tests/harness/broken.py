"""The README's GRU, made to fail in a chosen way: what a comparison must survive."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mine import gru  # type: ignore[import-not-found]

from baselines.config import Unsupported

DYING = 25
"""Forward calls that the second process of a mortal model lives through."""


def dies_in_the_end(calls: int) -> Callable[..., None]:
    left = [None] * calls

    def hook(*_: object) -> None:
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left.pop()

    return hook


@dataclass
class Options(gru.Options):  # type: ignore[misc]
    fault: str = ""

    def parameters(self, vocab_size: int) -> int:
        if self.fault == "unsupported":
            raise Unsupported("needs a quantum computer")
        return super().parameters(vocab_size)


class Broken(gru.GRU):  # type: ignore[misc]
    Config = Options
    fault = ""

    @classmethod
    def build(cls, config: Any, vocab_size: int) -> Any:
        if config.fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if config.fault == "unsupported":
            raise Unsupported("needs a quantum computer")
        if config.fault == "oom":
            raise MemoryError("no room for the weights")
        made = super().build(config, vocab_size)
        if config.fault == "nan":
            torch.nn.init.constant_(made.model.embed.weight, float("nan"))
        if config.fault == "mortal" and os.environ.get("RANK") == "1":
            made.model.register_forward_pre_hook(dies_in_the_end(DYING))
        return made

    @classmethod
    def load(cls, config: Any) -> Any:
        made = super().load(config)
        made.fault = config.fault
        return made

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = super().forward(input_ids)
        return logits + logits.mean(1, keepdim=True) if self.fault == "acausal" else logits

    def prefill(self, input_ids: torch.Tensor, state: Any = None, logits_to_keep: int = 1) -> Any:
        if self.fault == "oom at 64" and input_ids.shape[1] == 64:
            raise MemoryError("no room for 64 tokens")
        return super().prefill(input_ids, state, logits_to_keep)
