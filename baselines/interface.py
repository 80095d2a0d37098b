"""The one interface through which the instrument sees every model.

A family gives a `Config` (its options, see `baselines.config`) and a subclass of `SequenceModel` around a
`transformers.PreTrainedModel` causal LM, so `generate`, `save_pretrained` and the ecosystem keep working. Gate,
scoring and timing are written once against the methods below and know no architecture by name.

Shapes: B rows, L tokens, V vocabulary. Token ids are int64. A `state` is whatever the model carries from token to
token (KV cache, convolution window, recurrent state, fast weights); it may be updated in place, so only the
one returned last is valid.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from baselines.config import FamilyConfig
from ttt_impl.cpu import linear

State = Any
Mode = Literal["train", "prefill", "step"]


class Encoded(NamedTuple):
    """Text as a model reads it: token ids [n], and of how many bytes each of them is the text [n]."""

    ids: NDArray[np.int64]
    sizes: NDArray[np.int64]


def bytes_as_tokens(text: bytes) -> Encoded:
    """Each byte is a token, its id the byte's value."""
    ids = np.frombuffer(text, np.uint8).astype(np.int64)
    return Encoded(ids, np.ones_like(ids))


class SequenceModel(ABC):
    """One causal language model with its state, its cost formulas and the name of the code path it runs on."""

    Config: ClassVar[type[FamilyConfig]]
    trains: ClassVar[bool] = True
    """Whether models of this family are built and trained here; False: only loaded."""
    continues: bool = True
    """Whether `prefill` can continue a state by more than one token; what cannot is marked and still timed."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """The tokenizer that a loaded model brings along; None: it reads bytes."""
    exact_causality: bool = True
    """Whether no bit of a logit depends on later tokens; where an FFT rounds across time the gate asks in float64."""

    as_it_came: ClassVar[bool] = False
    """Whether the model is timed with PyTorch's linear layers; every family has those of `ttt_impl.cpu.linear`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        if not self.as_it_came:
            linear.use(model)

    @classmethod
    @abstractmethod
    def build(cls, config: Any, vocab_size: int) -> Self:
        """A freshly initialised float32 model on the CPU from a complete config."""

    @classmethod
    def load(cls, config: FamilyConfig) -> Self:
        """The trained model in the folder (or hub name) `config.checkpoint`, float32, in evaluation mode."""
        model = AutoModelForCausalLM.from_pretrained(str(config.checkpoint), dtype=torch.float32)
        return cls(model.eval())

    @property
    def vocab_size(self) -> int:
        """Number of token ids the model knows."""
        return int(self.model.config.vocab_size)

    @property
    def context_limit(self) -> int | None:
        """Tokens beyond which the model must not be asked; None: there is no such limit."""
        return None

    def encode(self, text: bytes) -> Encoded:
        """The tokens of `text`: its bytes, unless the model brings a tokenizer."""
        return bytes_as_tokens(text)

    @property
    @abstractmethod
    def kernel_path(self) -> str:
        """Which implementation the last call ran on: sdpa, torch-scan, scan, step …; recorded in every row."""

    @abstractmethod
    def flops(self, length: int, mode: Mode) -> int:
        """Floating-point operations (2 a multiply-add) of one row.

        `train`: forward and backward of `length` tokens; `prefill`: forward of `length` tokens, of which the last alone
        goes through the head and what follows the mixing in the last block; `step`: one token after `length` tokens of
        context.
        """

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [B, L, V] of `input_ids` [B, L], without any state."""
        return self.model(input_ids, use_cache=False).logits

    def prefill(self, input_ids: Tensor, state: State | None = None, logits_to_keep: int = 1) -> tuple[Tensor, State]:
        """Feed `input_ids` [B, L], continuing `state`; logits of the last `logits_to_keep` tokens (0: all)."""
        out = self.model(input_ids, past_key_values=state, use_cache=True, logits_to_keep=logits_to_keep)
        return out.logits, out.past_key_values

    def step(self, input_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Feed one token a row, `input_ids` [B, 1]; logits [B, 1, V] and the next state."""
        return self.prefill(input_ids, state)

    @torch.inference_mode()
    def score(self, input_ids: Tensor, segment: int = 2048, targets: int | None = None) -> Tensor:
        """Negative log-likelihood in nats [B, targets] of the last `targets` tokens, each given all tokens before it.

        None: of tokens 1 … L - 1 of `input_ids` [B, L]. The rows run through the model `segment` tokens at a time and
        carry the state between, so memory stays bounded by the state and one segment of logits at any length. What
        outlives a segment has its place from the first one on: allocated bit by bit it would leave the heap so full of
        small things that no later segment's logits fit between them. Log-softmax in float32, or the model's float64.
        """
        count = input_ids.shape[1] - 1 if targets is None else targets
        losses, done = input_ids.new_empty(0, dtype=torch.float32), 0
        for logits, aims in self.read(input_ids, segment, targets):
            if not done:
                losses = logits.new_empty(len(aims), count)
            losses[:, done : done + aims.shape[1]] = nats(logits, aims)
            done += aims.shape[1]
        return losses

    def read(
        self, input_ids: Tensor, segment: int = 2048, targets: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What `score` is taken from: logits [B, n, V] and the tokens [B, n] they are about, a segment at a time."""
        length = input_ids.shape[1]
        first = 0 if targets is None else length - 1 - targets
        size = segment if self.continues else length
        state = None
        for start in range(0, length - 1, size):
            end = min(start + size, length - 1)
            wanted = end - max(start, first)
            logits, state = self.prefill(input_ids[:, start:end], state, logits_to_keep=max(wanted, 1))
            if wanted > 0:
                wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
                yield wide, input_ids[:, end + 1 - wanted : end + 1]

    def state_bytes(self, state: State) -> int:
        """Bytes of all distinct tensors that `state` holds, counted on the object itself."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(state)}
        return sum(storages.values())

    def before_step(self, step: int, steps: int) -> None:  # noqa: B027 - most families have nothing to do
        """Called before each of the `steps` optimiser steps: what the family changes of itself as training goes on."""

    def diagnostics(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Curves [layers, L] that the family can draw of itself reading `input_ids` [B, L], as "group: series"."""
        return {}

    def save(self, folder: Path) -> None:
        """Write safetensors weights and config.json, readable by `from_pretrained`."""
        self.model.save_pretrained(folder)


def nats(logits: Tensor, aims: Tensor) -> Tensor:
    """Negative log-likelihood [B, n] of the tokens `aims` [B, n] by `logits` [B, n, V]."""
    return F.cross_entropy(logits.flatten(0, 1), aims.flatten(), reduction="none").view_as(aims)


def tensors_in(value: Any, seen: set[int] | None = None) -> list[Tensor]:
    """Every tensor reachable from `value` through containers, dataclasses and attributes of cache objects."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type(None))):
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        children = list(value)
    elif dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
        children = [v for k, v in vars(value).items() if k != "config"]
    else:
        children = []
    return [tensor for child in children for tensor in tensors_in(child, seen)]
