"""The model read in any way: whole, cached, split, padded, packed, with other rows beside it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ttt_impl.helpers import EXACT, LEARNERS, gap, model, tokens
from ttt_impl import TTTCache, TTTForCausalLM
from ttt_impl.configuration import BACKBONES, INNER_TASKS

BOTH = pytest.mark.parametrize("backbone", list(BACKBONES))
EACH = pytest.mark.parametrize("kind", LEARNERS)
TASKS = pytest.mark.parametrize("task", INNER_TASKS)


@torch.no_grad()
def read_in_chunks(
    built: TTTForCausalLM, ids: torch.Tensor, lengths: list[int], **kwargs: torch.Tensor
) -> torch.Tensor:
    """Logits of ids [B, L], read through a cache in chunks of the given lengths."""
    cache, outputs, start = TTTCache(built.config), [], 0
    for length in lengths:
        masks = {k: v[:, : start + length] for k, v in kwargs.items()}
        result = built(ids[:, start : start + length], past_key_values=cache, **masks)
        outputs.append(result.logits)
        start += length
        assert result.past_key_values is cache
        assert cache.get_seq_length() == start
    return torch.cat(outputs, 1)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(LEARNERS), st.sampled_from(list(BACKBONES)), st.sampled_from(INNER_TASKS),
    st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 6), st.integers(1, 5),
)  # fmt: skip
def test_any_split(kind: str, backbone: str, task: str, lengths: list[int], size: int, kernel: int) -> None:
    built = model(kind, backbone, inner_task=task, mini_batch_size=size, conv_kernel=kernel)
    ids = tokens(2, sum(lengths))
    with torch.no_grad():
        assert gap(read_in_chunks(built, ids, lengths), built(ids).logits) < EXACT


@EACH
@BOTH
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33])
def test_decoding_with_published_mini_batch(kind: str, backbone: str, length: int) -> None:
    """Prefill, then one token at a time across the next border: the function of one forward pass."""
    built, ids = model(kind, backbone, mini_batch_size=16), tokens(2, length + 18)
    with torch.no_grad():
        whole = built(ids).logits
    assert gap(read_in_chunks(built, ids, [length] + [1] * 18), whole) < EXACT


@EACH
@BOTH
@TASKS
def test_left_padding_changes_nothing(kind: str, backbone: str, task: str) -> None:
    """Rows of 1, 6 and 13 tokens in one batch, at once and in chunks that begin inside the padding."""
    built, lengths = model(kind, backbone, inner_task=task), (1, 6, 13)
    ids, mask = tokens(3, 13), torch.zeros(3, 13, dtype=torch.long)
    for row, n in enumerate(lengths):
        mask[row, 13 - n :] = 1
    with torch.no_grad():
        whole = built(ids, attention_mask=mask).logits
        for row, n in enumerate(lengths):
            alone = built(ids[row : row + 1, 13 - n :]).logits[0]
            assert gap(whole[row, 13 - n :], alone) < EXACT
    pieces = read_in_chunks(built, ids, [3, 1, 5, 1, 1, 2], attention_mask=mask)
    assert gap(pieces * mask[..., None], whole * mask[..., None]) < EXACT


@EACH
@BOTH
@TASKS
def test_packed_documents(kind: str, backbone: str, task: str) -> None:
    built, lengths = model(kind, backbone, inner_task=task), [5, 1, 8, 4, 3]
    ids = tokens(1, sum(lengths))
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with torch.no_grad():
        alone = [built(part, labels=part) if part.shape[1] > 1 else built(part) for part in ids.split(lengths, 1)]
        expected = torch.cat([x.logits for x in alone], 1)
        by_borders = built(ids, cu_seqlens=borders, labels=ids)
        by_positions = built(ids, position_ids=positions, labels=ids)
    assert gap(by_borders.logits, expected) < EXACT
    assert gap(by_positions.logits, expected) < EXACT
    losses = sum(x.loss * (n - 1) for x, n in zip(alone, lengths, strict=True) if n > 1)
    for result in (by_borders, by_positions):
        assert gap(result.loss, losses / (sum(lengths) - len(lengths))) < EXACT


@EACH
@BOTH
def test_rows_do_not_touch(kind: str, backbone: str) -> None:
    built, ids = model(kind, backbone), tokens(3, 11)
    with torch.no_grad():
        together = built(ids).logits
        assert gap(together[1:2], built(ids[1:2]).logits) < EXACT


@EACH
@BOTH
@TASKS
def test_the_future_is_not_read(kind: str, backbone: str, task: str) -> None:
    built, ids = model(kind, backbone, inner_task=task), tokens(1, 12)
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 7) % 50
    with torch.no_grad():
        before, after = built(ids).logits, built(changed).logits
    assert torch.equal(before[:, :6], after[:, :6])
    assert min(gap(before[:, t], after[:, t]) for t in range(6, 12)) > 1e-8


def test_official_names_and_positional_habits() -> None:
    """`cache_params` is the official name of the cache; outputs answer to both names."""
    built, ids = model(), tokens(2, 9)
    with torch.no_grad():
        first = built(ids[:, :5], use_cache=True)
        assert first.cache_params is first.past_key_values
        second = built(ids[:, 5:], cache_params=first.cache_params, use_cache=True)
        assert gap(second.logits, built(ids).logits[:, 5:]) < EXACT
        assert built(ids).past_key_values is None
        logits, cache = built(ids, use_cache=True, return_dict=False)
        assert isinstance(cache, TTTCache)
        assert gap(logits, built(ids).logits) < EXACT


def test_logits_to_keep_hidden_states_and_embeddings() -> None:
    built, ids = model(), tokens(2, 9)
    with torch.no_grad():
        whole = built(ids, output_hidden_states=True)
        assert gap(built(ids, logits_to_keep=2).logits, whole.logits[:, -2:]) < EXACT
        assert gap(built(ids, logits_to_keep=torch.tensor([0, 4])).logits, whole.logits[:, [0, 4]]) < EXACT
        assert gap(built(inputs_embeds=built.get_input_embeddings()(ids)).logits, whole.logits) == 0
    assert len(whole.hidden_states) == 3
    assert gap(built.lm_head(whole.hidden_states[-1]), whole.logits) == 0


@EACH
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    """By groups of mini-batches inside the layer, by blocks outside, and both."""
    ids, gradients = tokens(2, 18), []
    for group, blocks in ((0, False), (1, False), (3, False), (0, True), (2, True)):
        built = model(kind, scan_checkpoint_group_size=group).train()
        if blocks:
            enable = getattr(built, "activation_checkpointing_enable", built.gradient_checkpointing_enable)
            enable()
        result = built(ids, labels=ids, use_cache=True)
        assert (result.past_key_values is None) == blocks
        result.loss.backward()
        gradients.append([p.grad for p in built.parameters()])
    for other in gradients[1:]:
        assert max(gap(a, b) for a, b in zip(gradients[0], other, strict=True)) < 1e-12


def test_mean_over_items_in_the_whole_batch() -> None:
    """Gradient accumulation: sum / num_items_in_batch, and -100 ignored."""
    built, ids = model(), tokens(2, 9)
    labels = ids.clone()
    labels[0, :4] = -100
    with torch.no_grad():
        mean = built(ids, labels=labels).loss
        assert gap(built(ids, labels=labels, num_items_in_batch=26).loss * 2, mean) < EXACT


@EACH
@BOTH
def test_training_under_autocast(kind: str, backbone: str) -> None:
    """bfloat16 where PyTorch thinks fit, the inner loop in float32: close to the gradients of float32."""
    ids, gradients = tokens(2, 20), []
    for enabled in (False, True):
        built = model(kind, backbone).float().train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = built(ids, labels=ids).loss
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in built.parameters()]))
    assert ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item() < 0.1


def test_half_precision_model() -> None:
    built, ids = model("mlp", mini_batch_size=16), tokens(2, 40)
    with torch.no_grad():
        exact = built(ids).logits
        half = built.bfloat16()(ids, use_cache=True)
    assert half.logits.dtype == torch.float32
    fast = half.past_key_values.layers[0].fast
    assert all(w.dtype == torch.float32 for w in fast.weights)
    assert ((half.logits - exact).norm() / exact.norm()).item() < 0.1
