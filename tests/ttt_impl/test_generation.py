"""`generate` in all its ways, from a saved folder through the Auto classes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import ttt_impl
from tests.ttt_impl.helpers import LEARNERS, gap, model, scatter, tokens
from ttt_impl import TTTCache, TTTConfig, TTTForCausalLM, TTTModel
from ttt_impl.configuration import BACKBONES, SIZES

BOTH = pytest.mark.parametrize("backbone", list(BACKBONES))
EACH = pytest.mark.parametrize("kind", LEARNERS)
NEW = 11


@EACH
@BOTH
@pytest.mark.parametrize("how", [{"do_sample": False}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_cache_and_padding_change_no_token(kind: str, backbone: str, how: dict[str, int]) -> None:
    """Batched left-padded prompts, with the cache, give what each prompt gives alone without it."""
    built, lengths = model(kind, backbone), (2, 5, 9)
    ids, mask = tokens(3, 9), torch.zeros(3, 9, dtype=torch.long)
    for row, n in enumerate(lengths):
        mask[row, 9 - n :] = 1
    together = built.generate(ids, attention_mask=mask, max_new_tokens=NEW, **how)
    assert built.model.layers[0].seq_modeling_block.kernel_path == "step"
    for row, n in enumerate(lengths):
        alone = built.generate(ids[row : row + 1, 9 - n :], max_new_tokens=NEW, use_cache=False, **how)
        assert torch.equal(together[row, 9:], alone[0, n:])


@EACH
@BOTH
def test_saved_folder_opens_with_auto_classes(kind: str, backbone: str, tmp_path: Path) -> None:
    built, ids = model(kind, backbone), tokens(1, 6)
    built.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), TTTConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), TTTModel)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(again, TTTForCausalLM)
    assert set(again.state_dict()) == set(built.state_dict())
    for name, weight in built.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    with torch.no_grad():
        for weight in again.parameters():  # out of the mapped file, whose alignment may change how products round
            weight.data = weight.data.clone()
        assert gap(again(ids).logits, built(ids).logits) == 0
    assert torch.equal(again.generate(ids, max_new_tokens=NEW), built.generate(ids, max_new_tokens=NEW))


@EACH
@BOTH
def test_speculative_decoding(kind: str, backbone: str) -> None:
    """An assistant that is often wrong, and prompt lookup: rejected tokens leave no trace."""
    built, assistant, ids = model(kind, backbone), model(kind, backbone), tokens(1, 7)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    plain = built.generate(ids, max_new_tokens=25, do_sample=False)
    assert torch.equal(built.generate(ids, max_new_tokens=25, do_sample=False, assistant_model=assistant), plain)
    assert torch.equal(built.generate(ids, max_new_tokens=25, do_sample=False, prompt_lookup_num_tokens=6), plain)


@EACH
def test_sampling_repeats_with_the_seed(kind: str) -> None:
    built, ids = model(kind), tokens(2, 5)
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        drawn.append(built.generate(ids, max_new_tokens=NEW, do_sample=True, use_cache=use_cache))
    assert torch.equal(*drawn)


def test_chunked_prefill_and_a_second_turn() -> None:
    """Prefill in chunks, then go on from the returned cache as a conversation does."""
    built, ids = model(), tokens(1, 10)
    whole = built.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(built.generate(ids, max_new_tokens=NEW, do_sample=False, prefill_chunk_size=3), whole)
    first = built.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert isinstance(first.past_key_values, TTTCache)
    second = built.generate(
        first.sequences, past_key_values=first.past_key_values, max_new_tokens=NEW - 4, do_sample=False
    )
    assert torch.equal(second, whole)


def test_several_sequences_from_one_prompt() -> None:
    built, ids = model(), tokens(2, 5)
    torch.manual_seed(0)
    drawn = built.generate(ids, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert drawn.shape == (6, 9)
    assert torch.equal(drawn[:3, :5], ids[:1].expand(3, -1))


def test_the_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs as printed, on a smaller model."""
    readme = (Path(ttt_impl.__file__).parent / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    assert '"125m"' in example
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SIZES, "125m", SIZES["125m"] | {"hidden_size": 24, "num_hidden_layers": 1})
    seen: dict[str, object] = {}
    exec(example, seen)
    assert (tmp_path / "folder" / "config.json").exists()
    assert isinstance(seen["cache"], TTTCache)
    assert seen["cache"].positions == [107, 107]


def test_seeds_of_helpers_differ() -> None:
    """The comparisons above mean something only if other parameters give other tokens."""
    built, ids = model(), tokens(1, 6)
    before = built.generate(ids, max_new_tokens=NEW, do_sample=False)
    scatter(built, seed=9)
    assert not torch.equal(before, built.generate(ids, max_new_tokens=NEW, do_sample=False))
