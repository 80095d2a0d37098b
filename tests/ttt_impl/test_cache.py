"""The cache as an object: rows moved about, tokens taken back, its size."""

import pytest
import torch

from tests.ttt_impl.helpers import EXACT, LEARNERS, gap, model, tokens
from ttt_impl import TTTCache
from ttt_impl.configuration import BACKBONES

BOTH = pytest.mark.parametrize("backbone", list(BACKBONES))
EACH = pytest.mark.parametrize("kind", LEARNERS)


@EACH
@BOTH
@torch.no_grad()
def test_rows_follow_their_indices(kind: str, backbone: str) -> None:
    built, ids = model(kind, backbone), tokens(3, 12)
    expected = built(ids).logits[:, 7:]
    cache = built(ids[:, :7], use_cache=True).past_key_values
    twice = cache.copy()
    twice.batch_repeat_interleave(2)
    assert (
        gap(built(ids[:, 7:].repeat_interleave(2, 0), past_key_values=twice).logits, expected.repeat_interleave(2, 0))
        < EXACT
    )
    order = torch.tensor([2, 0, 2])
    moved = cache.copy()
    moved.reorder_cache(order)
    assert gap(built(ids[order, 7:], past_key_values=moved).logits, expected[order]) < EXACT
    cache.batch_select_indices(torch.tensor([1]))
    assert gap(built(ids[1:2, 7:], past_key_values=cache).logits, expected[1:2]) < EXACT


@EACH
@BOTH
@torch.no_grad()
def test_copy_is_independent(kind: str, backbone: str) -> None:
    built, ids = model(kind, backbone), tokens(2, 12)
    cache = built(ids[:, :6], use_cache=True).past_key_values
    copy = cache.copy()
    for _ in range(5):
        built(tokens(2, 1, seed=4), past_key_values=copy)
    assert copy.get_seq_length() == 11
    assert cache.get_seq_length() == 6
    assert gap(built(ids[:, 6:], past_key_values=cache).logits, built(ids).logits[:, 6:]) < EXACT


@EACH
@pytest.mark.parametrize(("backbone", "task"), [("transformer", "multi_view"), ("mamba", "next_token")])
@pytest.mark.parametrize("chunk", [1, 3, 20])
@torch.no_grad()
def test_tokens_taken_back_leave_no_trace(kind: str, backbone: str, task: str, chunk: int) -> None:
    """Read some other tokens in chunks, take them back, and go on as if they had never been."""
    built, ids = model(kind, backbone, inner_task=task), tokens(1, 24)
    expected = built(ids).logits
    for first in (6, 8):
        for extra in (1, 5, 9):
            cache = TTTCache(built.config, rewind=9)
            built(ids[:, :first], past_key_values=cache)
            for part in tokens(1, extra, seed=8).split(chunk, 1):
                built(part, past_key_values=cache)
            cache.crop(-extra)
            assert cache.get_seq_length() == first
            for start, stop in ((first, first + 7), (first + 7, first + 8), (first + 8, first + 12)):
                assert gap(built(ids[:, start:stop], past_key_values=cache).logits, expected[:, start:stop]) < EXACT


@torch.no_grad()
def test_crop_says_what_it_cannot_do() -> None:
    built = model()
    cache = built(tokens(1, 9), use_cache=True).past_key_values
    cache.crop(0)
    cache.crop(20)
    assert cache.get_seq_length() == 9
    with pytest.raises(ValueError, match=r"crop takes back 3 of 9 tokens; valid choices: at most 0, the rewind"):
        cache.crop(6)
    cache.activate_past_recording()
    built(tokens(1, 2), past_key_values=cache)
    with pytest.raises(ValueError, match=r"crop takes back 3 of 11 tokens; .* only tokens read since it was set"):
        cache.crop(-3)
    cache.crop(-2)
    assert cache.positions == [9]
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    ragged = TTTCache(built.config, rewind=4)
    built(tokens(2, 3), attention_mask=mask, past_key_values=ragged)
    with pytest.raises(ValueError, match=r"crop with rows at positions \[3, 2\]; valid choices: rows at the same"):
        ragged.crop(-1)


@EACH
def test_size_does_not_grow(kind: str) -> None:
    """Weights, K rows and convolution inputs; the bytes are those of the tensors, whatever was read."""
    built = model(kind)
    sizes = set()
    with torch.no_grad():
        for length in (1, 4, 7, 40):
            sizes.add(built(tokens(2, length), use_cache=True).past_key_values.nbytes())
    heads, f, size, hidden = 2 * 3, 8, 4, 32
    if kind == "linear":
        numbers = heads * ((f + 1) * f + size * (f + 1) + size * f)
    else:
        weights = (f + 1) * hidden + (hidden + 1) * f
        numbers = heads * (weights + size * (f + 1) + size * (hidden + hidden + 1 + f))
    numbers += 2 * 2 * 3 * 24
    assert sizes == {2 * numbers * 8}


def test_reset_and_emptiness() -> None:
    built = model()
    cache = TTTCache(built.config)
    assert (cache.nbytes(), cache.get_seq_length(), len(cache)) == (0, 0, 2)
    with torch.no_grad():
        built(tokens(2, 5), past_key_values=cache)
        assert cache.nbytes() > 0
        cache.reset()
        assert (cache.nbytes(), cache.get_seq_length()) == (0, 0)
        assert gap(built(tokens(1, 5), past_key_values=cache).logits, built(tokens(1, 5)).logits) < EXACT


def test_another_batch_is_refused() -> None:
    built = model()
    with torch.no_grad():
        cache = built(tokens(2, 5), use_cache=True).past_key_values
        with pytest.raises(ValueError, match=r"batch of 3 rows for a cache of 2"):
            built(tokens(3, 1), past_key_values=cache)


def test_foreign_cache_is_refused() -> None:
    from transformers import DynamicCache

    with pytest.raises(ValueError, match=r"past_key_values=DynamicCache; valid choices: a TTTCache"):
        model()(tokens(1, 3), past_key_values=DynamicCache())
