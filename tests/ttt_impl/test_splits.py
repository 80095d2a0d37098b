"""One sequence, read whole or in pieces: any split, any starting place, ragged rows and packed documents agree."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ttt_impl.helpers import EXACT, GRADIENT, LEARNERS, expanded, gap, initial_weights, inner_inputs
from tests.ttt_impl.test_dual import ENTRY, weights_after
from tests.ttt_impl.test_reference import PRIMAL
from ttt_impl.layout import Layout, continued, packed
from ttt_impl.learner import PUBLISHED, Inputs
from ttt_impl.state import FastWeights

CPU = torch.device("cpu")


def cut_into(inputs: Inputs, lengths: list[int]) -> list[Inputs]:
    borders = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    return [inputs.each(lambda x, a=a, b=b: x[:, :, a:b]) for a, b in pairwise(borders)]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(LEARNERS), st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 9),
    st.integers(0, 2**20),
)  # fmt: skip
def test_any_split(kind: str, lengths: list[int], size: int, seed: int) -> None:
    inputs, weights = inner_inputs(sum(lengths), size, heads=2, seed=seed, scale=1.0), initial_weights(kind, 2)
    expected = PRIMAL[kind](inputs, expanded(weights, 2))
    state: FastWeights | None = None
    outputs, position = [], 0
    for part in cut_into(inputs, lengths):
        length = part.q.shape[2]
        layout = continued(length, size, [position, position], None, CPU)
        result = ENTRY[kind](part, weights, layout=layout, state=state, keep_state=True)
        state, position = result.state, position + length
        outputs.append(result.output)
    assert gap(torch.cat(outputs, 2), expected.output) < EXACT
    for ours, theirs in zip(weights_after(result, 2, PUBLISHED), expected.weights, strict=True):
        assert gap(ours, theirs) < EXACT


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("size", [1, 8, 16, 64])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 100])
def test_token_by_token(kind: str, size: int, length: int) -> None:
    inputs, weights = inner_inputs(length, size, batch=1, heads=1), initial_weights(kind, 1)
    expected = PRIMAL[kind](inputs, expanded(weights, 1)).output
    state, outputs, paths = None, [], set()
    for t, part in enumerate(cut_into(inputs, [1] * length)):
        layout = continued(1, size, [t], None, CPU)
        result = ENTRY[kind](part, weights, layout=layout, state=state, keep_state=True)
        state = result.state
        outputs.append(result.output)
        paths.add(result.path)
    assert gap(torch.cat(outputs, 2), expected) < EXACT
    assert "step" in paths or length == 1


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(LEARNERS), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5),
    st.integers(1, 6),
)  # fmt: skip
def test_ragged_rows(kind: str, chunks: list[tuple[int, int]], size: int) -> None:
    """Two rows that read different numbers of tokens a chunk, the shorter one padded on the left."""
    total = [sum(c[row] for c in chunks) for row in (0, 1)]
    inputs, weights = inner_inputs(max(1, *total), size, heads=2, scale=1.0), initial_weights(kind, 2)
    expected = PRIMAL[kind](inputs, expanded(weights, 2)).output
    state, positions = None, [0, 0]
    for counts in chunks:
        width = max(1, *counts)
        padding = torch.tensor([[t < width - n for t in range(width)] for n in counts])

        spans = list(zip(positions, counts, strict=True))

        def take(x: Tensor, spans: list[tuple[int, int]] = spans, width: int = width) -> Tensor:
            """The rows' next tokens, nines in front."""
            rows = torch.full((2, x.shape[1], width, *x.shape[3:]), 9.0, dtype=x.dtype)
            for row, (first, n) in enumerate(spans):
                rows[row, :, width - n :] = x[row, :, first : first + n]
            return rows

        layout = continued(width, size, positions, padding if bool(padding.any()) else None, CPU)
        result = ENTRY[kind](inputs.each(take), weights, layout=layout, state=state, keep_state=True)
        state = result.state
        for row, n in enumerate(counts):
            there = expected[row, :, positions[row] : positions[row] + n]
            assert n == 0 or gap(result.output[row, :, width - n :], there) < EXACT
        positions = [p + n for p, n in zip(positions, counts, strict=True)]


def documents(lengths: list[list[int]]) -> Layout:
    """Rows of documents; all rows of the same length."""
    starts = torch.zeros(len(lengths), sum(lengths[0]), dtype=torch.bool)
    for row, sizes in enumerate(lengths):
        starts[row, [sum(sizes[:i]) for i in range(len(sizes))]] = True
    return packed(starts, 4)


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("path", ["scan", "autograd"])
@pytest.mark.parametrize("group", [0, 2])
def test_packed_documents_are_read_alone(kind: str, path: str, group: int) -> None:
    """Outputs and gradients of documents packed in a row are those of the documents one by one."""
    lengths = [[5, 1, 8, 6], [4, 4, 11, 1]]
    inputs, weights = inner_inputs(20, 4, heads=2), initial_weights(kind, 2)
    leaves = [x.requires_grad_() for x in (*inputs, *weights)]
    inputs, weights = Inputs(*leaves[:7]), tuple(leaves[7:])
    result = ENTRY[kind](inputs, weights, layout=documents(lengths), path=path, group=group).output
    alone = []
    for row, sizes in enumerate(lengths):
        parts = cut_into(inputs.each(lambda x, row=row: x[row : row + 1]), sizes)
        alone.append(torch.cat([PRIMAL[kind](p, expanded(weights, 1)).output for p in parts], 2))
    expected = torch.cat(alone)
    assert gap(result, expected) < EXACT
    probe = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad((result * probe).sum(), leaves)
    theirs = torch.autograd.grad((expected * probe).sum(), leaves)
    assert max(gap(a, b) for a, b in zip(ours, theirs, strict=True)) < GRADIENT


@pytest.mark.parametrize("kind", LEARNERS)
def test_pending_rows_stay_few(kind: str) -> None:
    """The open mini-batch is kept as rows, not as a dense gradient: far smaller than the weights at width 64."""
    inputs, weights = inner_inputs(30, 16, batch=1, heads=1, width=64), initial_weights(kind, 1, 64)
    state = ENTRY[kind](inputs, weights, keep_state=True).state
    assert state is not None
    taken = (state.gradients[-1] != 0).any(-1).sum().item()
    assert taken == 30 - 16
    dense = sum(w.numel() for w in state.weights)
    assert sum(r.numel() for r in state.rows) < 0.51 * dense


@pytest.mark.parametrize("kind", LEARNERS)
def test_closed_mini_batches_are_recorded_as_they_were(kind: str) -> None:
    """`record` returns the state just before each of the last folds; reading on from it repeats what followed."""
    inputs, weights = inner_inputs(19, 4, heads=2), initial_weights(kind, 2)
    result = ENTRY[kind](inputs, weights, keep_state=True, record=2)
    assert len(result.closed) == 2
    again = result.closed[0].first_rows(2)
    tail = inputs.each(lambda x: x[:, :, 10:])
    layout = continued(9, 4, [10, 10], None, CPU)
    assert gap(ENTRY[kind](tail, weights, layout=layout, state=again).output, result.output[:, :, 10:]) < EXACT
