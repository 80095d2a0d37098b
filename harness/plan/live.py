"""Bytes of the tensors that are alive while a model works, and the most that there are at a time.

What every operation returns passes through a dispatch mode of PyTorch; its storage counts from there until the last
tensor lets go of it. For a training step this is, to the byte, what PyTorch's allocator hands out. A CPU's `malloc`
holds more of the machine than it has handed out, by a tenth to two thirds, as its heap goes to pieces.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baselines.interface import SequenceModel, nats
from harness.train.loop import loss_of


class LiveBytes(TorchDispatchMode):
    """Counts the storages that come and go inside the `with`; those of `known` were there before."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = [tensor.untyped_storage() for tensor in known]
        self._numbers: dict[int, int] = {id(storage): -1 for storage in self._known}
        self._events: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then look at what it returned."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self._numbers:
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        number, size, key = len(self._events), storage.nbytes(), id(storage)
        self._numbers[key] = number
        self._events.append((number, size))
        weakref.finalize(storage, self._remove, key, number, size).atexit = False

    def _remove(self, key: int, number: int, size: int) -> None:
        del self._numbers[key]
        self._events.append((number, -size))

    def peak(self, apart: Iterable[Tensor] = ()) -> int:
        """The most bytes at a time, without those of the tensors `apart`, which are still alive."""
        left_out = {self._numbers[id(tensor.untyped_storage())] for tensor in apart}
        return max(itertools.accumulate((size for number, size in self._events if number not in left_out)), default=0)


def training_bytes(baseline: SequenceModel, batch: int, length: int, autocast: bool) -> int:
    """The most bytes at a time of forward and backward of batch × length tokens, beside weights and gradients."""
    model = baseline.model.train()
    windows = torch.randint(baseline.vocab_size, (batch, length + 1))
    with LiveBytes([*model.parameters(), *model.buffers(), windows]) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model, windows)
        loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    peak = live.peak(gradients)
    model.zero_grad(set_to_none=True)
    model.eval()
    return peak


def scoring_bytes(baseline: SequenceModel, rows: int, length: int, targets: int) -> int:
    """The most bytes at a time while `rows` × `length` tokens are read for the last `targets`, beside the weights.

    As `SequenceModel.score`, but without gradients only: what operations are made of is hidden in inference mode.
    """
    model = baseline.model
    ids = torch.randint(baseline.vocab_size, (rows, length + 1))
    with LiveBytes([*model.parameters(), *model.buffers(), ids]) as live, torch.no_grad():
        torch.cat([nats(logits, aims) for logits, aims in baseline.read(ids, targets=targets)], dim=1)
    return live.peak()
