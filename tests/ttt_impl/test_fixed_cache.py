"""A cache of fixed addresses: one recorded step is right at every place, as a CUDA graph of it has to be."""

import pytest
import torch

from tests.ttt_impl.helpers import EXACT, LEARNERS, gap, model, tokens
from tests.ttt_impl.tape import Tape
from ttt_impl import TTTCache

EACH = pytest.mark.parametrize("kind", LEARNERS)


@EACH
@pytest.mark.parametrize(("backbone", "task"), [("transformer", "multi_view"), ("mamba", "next_token")])
@torch.no_grad()
def test_a_recorded_step_is_right_at_every_place(kind: str, backbone: str, task: str) -> None:
    """Twelve tokens in three mini-batches of four by one recording, from every place of the first."""
    built, ids = model(kind, backbone, inner_task=task), tokens(2, 20)
    expected = built(ids).logits
    for prefill in (1, 3, 4, 6):
        cache = built(ids[:, :prefill], use_cache=True).past_key_values
        cache.fix()
        token, tape = ids[:, prefill : prefill + 1].clone(), Tape()
        with tape:
            logits = built(token, past_key_values=cache).logits
        addresses = [x.data_ptr() for layer in cache.layers for x in layer.tensors()]
        assert gap(logits, expected[:, prefill : prefill + 1]) < EXACT
        for t in range(prefill + 1, prefill + 12):
            token.copy_(ids[:, t : t + 1])
            tape.replay()
            assert gap(logits, expected[:, t : t + 1]) < EXACT
        assert cache.positions == [prefill + 12] * 2
        assert [x.data_ptr() for layer in cache.layers for x in layer.tensors()] == addresses


@EACH
@torch.no_grad()
def test_rows_at_different_places(kind: str) -> None:
    """A padded prompt: the rows close their mini-batches at different steps."""
    built, ids = model(kind), tokens(2, 14)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    expected = [built(ids[:1]).logits[0], built(ids[1:, 2:]).logits[0]]
    cache = built(ids[:, :5], attention_mask=mask, use_cache=True).past_key_values
    cache.fix()
    token, tape = ids[:, 5:6].clone(), Tape()
    with tape:
        logits = built(token, past_key_values=cache).logits
    for t in range(6, 14):
        token.copy_(ids[:, t : t + 1])
        tape.replay()
        assert gap(logits[0, 0], expected[0][t]) < EXACT
        assert gap(logits[1, 0], expected[1][t - 2]) < EXACT
    assert (cache.positions, cache.get_seq_length()) == ([14, 12], 14)


@torch.no_grad()
def test_an_ordinary_step_cannot_be_recorded() -> None:
    """What Python counts is wrong in a recording; the tape notices as a capture would."""
    built, ids = model(), tokens(1, 3)
    cache = built(ids[:, :2], use_cache=True).past_key_values
    with pytest.raises(AssertionError, match="lift_fresh cannot be captured"), Tape():
        built(ids[:, 2:], past_key_values=cache)


@EACH
@torch.no_grad()
def test_a_copy_is_free_and_can_be_rewound(kind: str) -> None:
    built, ids = model(kind), tokens(1, 20)
    expected = built(ids).logits
    cache = built(ids[:, :3], use_cache=True).past_key_values
    cache.fix()
    for t in range(3, 7):
        built(ids[:, t : t + 1], past_key_values=cache)
    copy = cache.copy()
    copy.activate_past_recording()
    built(tokens(1, 6, seed=9), past_key_values=copy)
    copy.crop(7)
    assert gap(built(ids[:, 7:], past_key_values=copy).logits, expected[:, 7:]) < EXACT
    assert gap(built(ids[:, 7:8], past_key_values=cache).logits, expected[:, 7:8]) < EXACT


@torch.no_grad()
def test_says_what_a_fixed_cache_cannot_do() -> None:
    built, ids = model(), tokens(1, 6)
    with pytest.raises(ValueError, match="fix with rewind=0 after 0 tokens; valid choices: a cache without rewind"):
        TTTCache(built.config).fix()
    with pytest.raises(ValueError, match="fix with rewind=4 after 6 tokens"):
        built(ids, past_key_values=TTTCache(built.config, rewind=4)).past_key_values.fix()
    cache = built(ids, use_cache=True).past_key_values
    cache.fix()
    with pytest.raises(ValueError, match=r"2 tokens for a cache of fixed addresses; valid choices: one token a row"):
        built(ids[:, :2], past_key_values=cache)
    with pytest.raises(ValueError, match="1 tokens and attention_mask for a cache of fixed addresses"):
        built(ids[:, :1], attention_mask=torch.ones(1, 7), past_key_values=cache)
    for call in (lambda: cache.crop(-1), cache.activate_past_recording, lambda: cache.batch_repeat_interleave(2)):
        with pytest.raises(ValueError, match=r"on a cache of fixed addresses; valid choices: cache\.copy\(\)"):
            call()
