"""Bytes of the tensors that are alive while a model works, and the most that there are at a time.

What every operation returns passes through a dispatch mode of PyTorch; its storage counts from there until the last
tensor lets go of it. For a training step this is, to the byte, what PyTorch's allocator hands out. Products of
matrices, most of a step's time, are not computed: only their place counts. A CPU's `malloc` holds more than it has
handed out, by a tenth to two thirds, as its heap goes to pieces.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baselines.interface import SequenceModel, nats
from harness.train.loop import loss_of

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default}
"""Their last two arguments are the matrices, [..., M, K] and [..., K, N]."""


class NoProducts(TorchDispatchMode):
    """Within, products of matrices are zero."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, unless zeros will do."""
        if func in PRODUCTS:
            a, b = args[-2:]
            return a.new_zeros(*a.shape[:-1], b.shape[-1])
        return func(*args, **(kwargs or {}))


class LiveBytes(NoProducts):
    """Counts the storages that come and go inside the `with`; those of `known` were there before."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = [tensor.untyped_storage() for tensor in known]
        self._numbers: dict[int, int] = {id(storage): -1 for storage in self._known}
        self._events: list[tuple[int, int]] = []
        self._count = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then look at what it returned."""
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self._numbers:
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        number, size, key = self._count, storage.nbytes(), id(storage)
        self._count += 1
        self._numbers[key] = number
        self._events.append((number, size))
        weakref.finalize(storage, self._remove, key, number, size).atexit = False

    def _remove(self, key: int, number: int, size: int) -> None:
        del self._numbers[key]
        self._events.append((number, -size))

    def changes(self, apart: Iterable[Tensor] = ()) -> Changes:
        """All that came and went, without the tensors `apart`, which are still alive."""
        left_out = {self._numbers[id(tensor.untyped_storage())] for tensor in apart}
        kept = [event for event in self._events if event[0] not in left_out]
        numbers, sizes = np.array(kept, dtype=np.int64).reshape(-1, 2).T
        return Changes(numbers, sizes.astype(np.float64))


class Changes(NamedTuple):
    """Storages as they come and go: which one [n], and the bytes [n] that it adds or, at its end, takes away."""

    numbers: NDArray[np.int64]
    sizes: NDArray[np.float64]

    @property
    def peak(self) -> int:
        """The most bytes at a time."""
        return round(self.sizes.cumsum().max(initial=0))

    def with_vocabulary(self, prime: int, size: int) -> Changes:
        """As with `size` tokens of the vocabulary instead of `prime`, which divides no other side of a tensor."""
        return Changes(self.numbers, self.sizes * np.where(self.sizes % prime, 1, size / prime))

    def carried_on(self, more: Changes, times: int) -> float:
        """The most bytes at a time with rows beyond these, so many `times` those by which `more` has more of them.

        Each storage grows in a straight line; where other rows make others, the peak does.
        """
        here, there = (dict(zip(c.numbers.tolist(), abs(c.sizes), strict=True)) for c in (self, more))
        if here.keys() != there.keys():
            return self.peak + times * (more.peak - self.peak)
        grown = np.array([there[n] - here[n] for n in self.numbers.tolist()]) * np.sign(self.sizes)
        return float((self.sizes + times * grown).cumsum().max(initial=0))


def training_bytes(baseline: SequenceModel, batch: int, length: int, autocast: bool) -> int:
    """The most bytes at a time of forward and backward of batch × length tokens, beside weights and gradients."""
    return training_changes(baseline, batch, length, autocast).peak


def training_changes(baseline: SequenceModel, batch: int, length: int, autocast: bool) -> Changes:
    """What comes and goes in forward and backward of batch × length tokens, beside weights and gradients."""
    model = baseline.model.train()
    windows = torch.randint(baseline.vocab_size, (batch, length + 1))
    with LiveBytes([*model.parameters(), *model.buffers(), windows]) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model, windows)
        loss.backward()
    changes = live.changes(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    model.zero_grad(set_to_none=True)
    model.eval()
    return changes


def scoring_bytes(baseline: SequenceModel, rows: int, length: int, targets: int) -> int:
    """The most bytes at a time while `rows` × `length` tokens are read for the last `targets`, beside the weights.

    As `SequenceModel.score`, but without gradients only: what operations are made of is hidden in inference mode.
    """
    model = baseline.model
    ids = torch.randint(baseline.vocab_size, (rows, length + 1))
    with LiveBytes([*model.parameters(), *model.buffers(), ids]) as live, torch.no_grad():
        torch.cat([nats(logits, aims) for logits, aims in baseline.read(ids, targets=targets)], dim=1)
    return live.changes().peak
