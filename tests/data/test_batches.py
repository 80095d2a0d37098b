"""Batches are a pure function of (seed, step) that shows every window of every document once an epoch."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import building
from harness.data.batches import Batches, DrawnBatches, training_batches
from harness.data.config import DataConfig
from harness.data.tokens import TokenDocument, TokenStore
from tests.data.corpora import lines_of


def documents_of(*lengths: int) -> list[TokenDocument]:
    """Documents in which every token is unique in the corpus, so that a window tells where it comes from."""
    borders = np.cumsum([0, *lengths])
    return [
        TokenDocument(f"{i}", np.arange(start, end, dtype=np.uint16))  # type: ignore[arg-type]
        for i, (start, end) in enumerate(pairwise(borders))
    ]


def epoch_of(batches: Batches | DrawnBatches, epoch: int) -> np.ndarray:
    """All windows [windows_per_epoch, length + 1] of one epoch, in order, from batches of one."""
    assert batches.batch_size == 1
    first = epoch * batches.windows_per_epoch
    return np.concatenate([batches.batch(first + i) for i in range(batches.windows_per_epoch)])


def test_golden_values() -> None:
    batches = Batches(documents_of(12, 3, 9), length=3, batch_size=2, seed=7)
    assert batches.batch(0).tolist() == [[20, 21, 22, 23], [3, 4, 5, 6]]
    assert batches.batch(3).tolist() == [[1, 2, 3, 4], [7, 8, 9, 10]]
    assert batches.batch(1000).tolist() == [[15, 16, 17, 18], [18, 19, 20, 21]]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=6),
    length=st.integers(1, 12),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 5),
)
def test_an_epoch_cuts_each_document_once_and_crosses_no_border(
    lengths: list[int], length: int, seed: int, epoch: int
) -> None:
    documents = documents_of(*lengths, 13)
    batches = Batches(documents, length, batch_size=1, seed=seed)
    assert batches.left_out == sum(n <= length for n in lengths)
    windows = epoch_of(batches, epoch)
    assert windows.dtype == np.int64
    assert (np.diff(windows) == 1).all()  # consecutive tokens
    counts = Counter(next(d.name for d in documents if w[0] in d.ids and w[-1] in d.ids) for w in windows)
    assert counts == {d.name: (len(d.ids) - 1) // length for d in documents if len(d.ids) > length}
    targets = windows[:, 1:].ravel()
    assert len(set(targets)) == len(targets) == batches.windows_per_epoch * length
    for document in documents:  # all but the tails: what lies between two windows of a document is nothing
        covered = np.sort(targets[np.isin(targets, document.ids)])
        assert (np.diff(covered) == 1).all()


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    documents = documents_of(100, 57, 31)
    forward = Batches(documents, length=8, batch_size=3, seed=1)
    expected = [forward.batch(step) for step in range(40)]
    backward = Batches(documents, length=8, batch_size=3, seed=1)
    for step in reversed(range(40)):
        assert (backward.batch(step) == expected[step]).all()
    other = Batches(documents, length=8, batch_size=3, seed=2)
    assert not (other.batch(0) == expected[0]).all()


def test_batches_join_epochs_without_a_gap() -> None:
    documents = documents_of(50, 30)
    single = Batches(documents, length=7, batch_size=1, seed=0)
    rows = np.concatenate([epoch_of(single, epoch) for epoch in range(6)])
    size = 2 * single.windows_per_epoch + 3
    large = Batches(documents, length=7, batch_size=size, seed=0)
    assert (large.batch(0) == rows[:size]).all()
    assert (large.batch(1) == rows[size : 2 * size]).all()


def test_windows_are_shuffled_anew_each_epoch() -> None:
    batches = Batches(documents_of(401), length=4, batch_size=1, seed=0)
    orders = [epoch_of(batches, epoch)[:, 0].tolist() for epoch in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(0, 400, 4))
    assert orders[0] != sorted(orders[0])


def test_offsets_bring_head_and_tail_into_training_over_epochs() -> None:
    batches = Batches(documents_of(17), length=10, batch_size=1, seed=0)
    starts = [int(epoch_of(batches, epoch)[0, 0]) for epoch in range(60)]
    assert set(starts) == set(range(7))


def test_a_length_beyond_all_documents_is_refused() -> None:
    message = r"^train\.length=13 is longer than any training document \(longest 13 tokens; .*\)$"
    with pytest.raises(ValueError, match=message):
        Batches(documents_of(5, 13), length=13, batch_size=2, seed=0)
    assert Batches(documents_of(5, 13), length=12, batch_size=2, seed=0).windows_per_epoch == 1


def texts_of(count: int) -> list[str]:
    """Random letters, so that a window tells where it comes from."""
    rng = np.random.default_rng(0)
    return ["".join(map(chr, rng.integers(97, 123, size))) for size in rng.integers(2, 60, count)]


@pytest.fixture(scope="module", params=[False, True], ids=["documents", "packed"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Sixty documents in several shards, to be cut by document, or as one text with a byte 0 behind each."""
    folder = tmp_path_factory.mktemp("shards")
    path = lines_of(folder / "x.jsonl", *({"text": text} for text in texts_of(60)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "BLOCK_BYTES", 500)
        return TokenStore.build(DataConfig("jsonl", path, pack=request.param, processes=1), folder)


def cuts_of(document: bytes, length: int) -> list[list[bytes]]:
    """The windows of a document from each offset that it may be cut from."""
    windows, slack = divmod(len(document) - 1, length)
    starts = [[offset + k * length for k in range(windows)] for offset in range(slack + 1)]
    return [[document[start : start + length + 1] for start in cut] for cut in starts]


@pytest.mark.parametrize("length", [7, 16])
def test_a_corpus_of_many_shards_is_cut_like_one_of_a_single_shard(store: TokenStore, length: int) -> None:
    batches = training_batches(store, length, 1, seed=3)
    assert isinstance(batches, DrawnBatches)
    assert len(store.counts("tokens", "train")) > 4
    documents = [bytes(document.ids) for document in store.documents("train")]
    if store.pack:
        assert {document.index(0) - len(document) for document in documents} == {-1}
        documents = [b"".join(documents)]
    text, orders = b"".join(documents), []
    for epoch in range(2):
        found = [window.astype(np.uint8).tobytes() for window in epoch_of(batches, epoch)]
        orders.append(np.argsort([text.index(window) for window in found]).tolist())
        windows = Counter(found)
        for document in documents:
            windows -= Counter(next(cut for cut in cuts_of(document, length) if Counter(cut) <= windows))
        assert not windows
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_drawn_batches_depend_on_seed_and_step_alone_and_join_epochs(store: TokenStore) -> None:
    single = training_batches(store, 7, 1, seed=1)
    assert isinstance(single, DrawnBatches)
    rows = np.concatenate([epoch_of(single, epoch) for epoch in range(3)])
    size = single.windows_per_epoch + 3
    for step in (1, 0):
        found = training_batches(TokenStore.open(store.folder), 7, size, seed=1).batch(step)
        assert (found == rows[step * size : (step + 1) * size]).all()
        assert found.dtype == np.int64
    assert not (training_batches(store, 7, size, seed=2).batch(0) == rows[:size]).all()
    with pytest.raises(ValueError, match=r"^train\.length=9999 is longer"):
        training_batches(store, 9999, 2, seed=0)


def test_a_packed_corpus_of_one_shard_is_cut_as_one_document(tmp_path: Path) -> None:
    path = lines_of(tmp_path / "x.jsonl", *({"text": text} for text in texts_of(40)))
    store = TokenStore.build(DataConfig("jsonl", path, pack=True), tmp_path)
    whole = b"".join(bytes(document.ids) for document in store.documents("train"))
    expected = Batches([TokenDocument("", np.frombuffer(whole, np.uint8))], 16, 3, seed=0)
    found = training_batches(store, 16, 3, seed=0)
    assert all((found.batch(step) == expected.batch(step)).all() for step in range(9))
