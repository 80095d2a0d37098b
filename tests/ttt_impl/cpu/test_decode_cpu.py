"""One token through all blocks in one call: the same logits as reading whole, and nobody's surprise."""

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.helpers import LEARNERS, gap, model, tokens
from ttt_impl.cache import TTTCache
from ttt_impl.configuration import BACKBONES
from ttt_impl.cpu.decode import DECODERS
from ttt_impl.model import TTTForCausalLM

CLOSE = 2e-5
EACH = pytest.mark.parametrize("kind", LEARNERS)
BOTH = pytest.mark.parametrize("backbone", list(BACKBONES))


def single(kind: str, backbone: str = "mamba", **changes: object) -> TTTForCausalLM:
    return model(kind, backbone, **changes).float()


@torch.no_grad()
def one_by_one(built: TTTForCausalLM, ids: Tensor, cache: TTTCache, first: int) -> Tensor:
    """Logits of a prompt of `first` tokens and of every token after it."""
    parts = [ids[:, :first], *ids[:, first:].split(1, 1)]
    return torch.cat([built(x, past_key_values=cache, use_cache=True).logits for x in parts if x.shape[1]], 1)


@EACH
@BOTH
@pytest.mark.parametrize("width", [24, 48])
def test_steps_equal_one_forward(kind: str, backbone: str, width: int) -> None:
    """Heads of 8 and of 16: less than a vector, and whole ones."""
    built, ids = single(kind, backbone, hidden_size=width), tokens(3, 23)
    exact = model(kind, backbone, hidden_size=width)
    with torch.no_grad():
        expected = exact(ids).logits
    for batch, first in ((1, 1), (3, 6)):
        cache = TTTCache(built.config)
        assert gap(one_by_one(built, ids[:batch], cache, first).double(), expected[:batch]) < CLOSE
        assert cache in DECODERS
    assert built.model.layers[0].seq_modeling_block.kernel_path == "fused-cpu"


@EACH
def test_rows_at_different_places(kind: str) -> None:
    """Prompts padded on the left, then tokens: each row fills its mini-batch at its own time."""
    built, ids = single(kind), tokens(2, 16)
    padded = ids[:, :6].clone()
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, :3] = 0
    cache, outputs = TTTCache(built.config), []
    with torch.no_grad():
        built(padded, attention_mask=mask, past_key_values=cache, use_cache=True)
        for t in range(6, 16):
            mask = torch.cat([mask, mask.new_ones(2, 1)], 1)
            outputs.append(built(ids[:, t : t + 1], attention_mask=mask, past_key_values=cache, use_cache=True).logits)
        expected = [built(ids[:1]).logits[:, 6:], built(ids[1:, 3:]).logits[:, 3:]]
    assert cache in DECODERS
    assert gap(torch.cat(outputs, 1), torch.cat(expected)) < CLOSE


@EACH
def test_another_way_in_between(kind: str) -> None:
    """Chunks, reordered rows, copies and steps follow one another; every path finds what the last one left."""
    built, ids = single(kind), tokens(2, 24)
    cache = TTTCache(built.config)
    with torch.no_grad():
        expected = built(ids).logits
        one_by_one(built, ids[:, :7], cache, 3)
        middle = built(ids[:, 7:12], past_key_values=cache, use_cache=True).logits
        cache.batch_select_indices(torch.tensor([1, 0]))
        other = cache.copy()
        swapped = torch.cat([built(ids.flip(0)[:, t : t + 1], past_key_values=cache).logits for t in range(12, 24)], 1)
        again = torch.cat([built(ids.flip(0)[:, t : t + 1], past_key_values=other).logits for t in range(12, 24)], 1)
    assert gap(middle, expected[:, 7:12]) < CLOSE
    assert gap(swapped, expected.flip(0)[:, 12:]) < CLOSE
    assert torch.equal(swapped, again)


@EACH
def test_parameters_are_those_of_the_moment(kind: str) -> None:
    """Changed in place or put elsewhere between two tokens, and so is the factor on the inner rate."""
    built, ids = single(kind), tokens(1, 9)
    for change in ("in place", "elsewhere", "rate"):
        fused, plain = TTTCache(built.config), TTTCache(built.config, rewind=4)
        one_by_one(built, ids[:, :7], fused, 3)
        one_by_one(built, ids[:, :7], plain, 3)
        assert fused in DECODERS
        assert plain not in DECODERS
        layer = built.model.layers[0].seq_modeling_block
        if change == "in place":
            layer.v_proj.weight.data.mul_(1.5)
        elif change == "elsewhere":
            layer.v_proj.weight.data = layer.v_proj.weight.data * 0.5
        else:
            layer.inner_lr_scale = 0.3
        with torch.no_grad():
            a, b = (built(ids[:, 7:8], past_key_values=c, use_cache=True).logits for c in (fused, plain))
        assert gap(a, b) < CLOSE


def test_what_it_does_not_know_goes_the_ordinary_way() -> None:
    ids = tokens(1, 8)

    def decodes(built: TTTForCausalLM) -> bool:
        cache = TTTCache(built.config)
        one_by_one(built, ids, cache, 4)
        return cache in DECODERS

    assert decodes(single("linear"))
    assert not decodes(model("linear"))
    assert not decodes(single("linear", inner_task="next_token"))
    assert not decodes(single("linear", inner_norm=False))
    hooked, seen = single("linear"), []
    hooked.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    assert not decodes(hooked)
    assert len(seen) == 5


def test_embeddings_given_are_not_written_to() -> None:
    built, ids = single("linear"), tokens(1, 5)
    cache = TTTCache(built.config)
    one_by_one(built, ids, cache, 3)
    with torch.no_grad():
        given = built.model.embed_tokens(ids[:, :1])
        before = given.clone()
        built(inputs_embeds=given, past_key_values=cache, use_cache=True)
    assert torch.equal(given, before)


@EACH
def test_the_number_of_threads_does_not_show(kind: str) -> None:
    built, ids = single(kind, hidden_size=384, intermediate_size=400), tokens(1, 6)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(1)
            cache = TTTCache(built.config)
            with torch.no_grad():
                built(ids[:, :5], past_key_values=cache, use_cache=True)
            torch.set_num_threads(threads)
            with torch.no_grad():
                h = built.model(ids[:, 5:], past_key_values=cache, use_cache=True).last_hidden_state
            results.append(h)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
