"""What the backward pass keeps: recomputation by groups bounds it, where users of the official code ran out."""

import pytest
import torch

from tests.ttt_impl.helpers import LEARNERS, gap, initial_weights, inner_inputs
from tests.ttt_impl.test_dual import ENTRY
from ttt_impl import walk
from ttt_impl.learner import Inputs
from ttt_impl.ops import KEPT


def bytes_kept(kind: str, inputs: Inputs, weights: tuple[torch.Tensor, ...], group: int = 0, path: str = "auto") -> int:
    """Distinct memory saved by autograd between forward and backward of one entry."""
    storages: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = ENTRY[kind](inputs, weights, group=group, path=path).output
    kept = sum(storages.values())
    output.sum().backward()
    return kept


@pytest.mark.parametrize("kind", LEARNERS)
def test_layers_of_any_length_keep_little(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of width 64: five numbers a token and feature, one W a group; not a state for every mini-batch.

    All states of TTT-MLP alone would be 32 numbers a token and feature, and all intermediate results about 110.
    """
    monkeypatch.setattr(walk, "KEEP_BYTES", 0)
    inputs = Inputs(*(x.float().requires_grad_() for x in inner_inputs(1024, 16, 1, 1, 64)))
    weights = tuple(w.float().requires_grad_() for w in initial_weights(kind, 1, 64))
    groups = 8
    states = groups * sum(w.numel() for w in weights)
    assert bytes_kept(kind, inputs, weights, group=0) / 4 < 5 * 1024 * 64 + states


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("path", ["scan", "autograd"])
def test_paths_keep_what_they_say(kind: str, path: str) -> None:
    """The estimate that decides about recomputation is an upper bound, and not a loose one for the fast scan."""
    inputs = Inputs(*(x.float().requires_grad_() for x in inner_inputs(256, 16, 1, 2, 64)))
    weights = tuple(w.float().requires_grad_() for w in initial_weights(kind, 2, 64))
    numbers = bytes_kept(kind, inputs, weights, path=path) / inputs.q.nbytes
    assert numbers < KEPT[path]
    assert numbers > 0.8 * KEPT[path] or path == "autograd"


@pytest.mark.parametrize("kind", LEARNERS)
def test_groups_trade_memory_for_time(kind: str) -> None:
    inputs = inner_inputs(128, 4, width=16)
    weights = initial_weights(kind, width=16)
    kept, gradients = [], []
    for group in (0, 8):
        leaves = [x.detach().requires_grad_() for x in (*inputs, *weights)]
        kept.append(bytes_kept(kind, Inputs(*leaves[:7]), tuple(leaves[7:]), group))
        gradients.append([x.grad for x in leaves])
    assert kept[1] < 0.35 * kept[0]
    assert max(gap(a, b) for a, b in zip(*gradients, strict=True)) < 1e-11


def test_prefill_keeps_nothing_for_a_backward() -> None:
    """Without gradients, long input leaves a state of fixed size and the output."""
    inputs, weights = inner_inputs(200, 16, width=8), initial_weights("linear")
    state = ENTRY["linear"](inputs, weights, keep_state=True).state
    short = ENTRY["linear"](inputs.each(lambda x: x[:, :, :20]), weights, keep_state=True).state
    assert state is not None
    assert short is not None
    assert [x.untyped_storage().nbytes() for x in (*state.weights, *state.rows)] == [
        x.untyped_storage().nbytes() for x in (*short.weights, *short.rows)
    ]
