"""Scoring a long document needs the memory of its state and of one segment, whatever the length of the document."""

from __future__ import annotations

import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baselines.config import SizeConfig, fit_to_size
from baselines.interface import SequenceModel, bytes_as_tokens
from baselines.registry import find
from harness.data.tokens import TokenDocument
from harness.measure.memory import peak_bytes
from harness.measure.position import position_curve

SIZE = SizeConfig(60_000, 0.05, hidden_size=32, num_layers=2, head_dim=16)


def small(name: str) -> SequenceModel:
    family = find(name)
    return family.build(fit_to_size(name, family.Config(family=name), SIZE, 256), 256)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.holders: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.bytes += 0 if self.holders[storage.data_ptr()] else storage.nbytes()
                self.holders[storage.data_ptr()] += 1
                weakref.finalize(tensor, self._drop, storage.data_ptr(), storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return out

    def _drop(self, place: int, size: int) -> None:
        self.holders[place] -= 1
        self.bytes -= 0 if self.holders[place] else size


@pytest.mark.parametrize("name", ["mamba", "ttt"])
def test_no_logits_are_kept(name: str) -> None:
    """Beside the losses themselves, 4 bytes a token in float32, nothing grows with the length."""
    model, peaks = small(name), []
    for length in (4097, 6145):
        with Live() as live:
            model.score(torch.randint(97, 123, (1, length)))
        peaks.append(live.peak)
    assert 0 <= peaks[1] - peaks[0] <= 16 * 2048
    assert peaks[0] > 2048 * 256 * 4


def test_the_process_does_not_grow_with_the_document(tmp_path: Path) -> None:
    """Kept or scattered logits would take 1 KiB a token; ids, losses and what is written take a tenth of that."""
    model, peaks = small("mamba"), []

    def score(rows: np.ndarray, targets: int) -> np.ndarray:
        return model.score(torch.from_numpy(rows.astype(np.int64)), targets=targets).numpy()

    def measure(length: int) -> None:
        document = TokenDocument("d", np.full(length, 97, np.uint8))
        position_curve(score, bytes_as_tokens, [document], length, None, tmp_path / "n", tmp_path, lambda *_: None)

    for length in (4096, 8192, 36864):
        peak = peak_bytes(lambda length=length: measure(length), "cpu")  # type: ignore[misc]
        assert peak is not None
        peaks.append(peak)
    assert peaks[2] - peaks[1] < 0.4 * 1024 * (36864 - 8192)
