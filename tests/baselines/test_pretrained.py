"""Any causal LM with its tokenizer: the same bytes as everyone, its own limit, no code that nobody asked for."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from baselines.config import SizeConfig, fit_to_size
from baselines.pretrained import Config, Pretrained
from harness.data.tokens import TokenDocument
from harness.gate import run_gate
from harness.measure.fixed_target import BLOCK, fixed_target
from harness.measure.position import position_curve
from harness.measure.window import windowed
from tests.baselines import checks

TEXT = "Grüße aus Köln: the cat sat on the mat, the dog sat on the log. 日本 — the end of the end.\n"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges and a beginning-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT.partition("日")[0]] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def llama(**options: int) -> PreTrainedModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 40}
    return LlamaForCausalLM(LlamaConfig(**(sizes | options)))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=128, n_embd=16, n_layer=2, n_head=4))


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, state_size=4))


def saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Config:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Config(path=str(folder))


@pytest.fixture(scope="module")
def loaded(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    torch.manual_seed(0)
    return Pretrained.load(saved(llama(), tokenizer, tmp_path_factory.mktemp("llama")))


def test_every_byte_belongs_to_one_token(loaded: Pretrained) -> None:
    text = TEXT.encode()
    ids, sizes = loaded.encode(text)
    assert sizes.sum() == len(text)
    assert sizes.max() > 1
    end = 0
    for size, (_, stop) in zip(
        sizes, loaded.tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"], strict=True
    ):
        end += size
        assert end in (0, len(TEXT[:stop].encode()), len(TEXT[: stop - 1].encode()))
    assert loaded.tokenizer.decode(ids) == TEXT
    assert 0 not in ids


def test_a_character_that_the_cut_halves_is_left_out_and_bytes_that_are_no_text_are_refused(loaded: Pretrained) -> None:
    text = TEXT.encode()
    cut = text.index("日".encode()) + 2
    assert loaded.encode(text[:cut]).sizes.sum() == cut - 2
    with pytest.raises(ValueError, match="reads UTF-8"):
        loaded.encode(b"\xff\xfe text")


def test_white_space_that_a_tokenizer_drops_still_counts(loaded: Pretrained) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    other = copy.copy(loaded)
    other.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    ids, sizes = other.encode(b"a   b c")
    assert ids.tolist() == [0, 1, 2]
    assert sizes.tolist() == [1, 4, 2]


@pytest.mark.parametrize("make", [llama, gpt2, mamba])
def test_it_passes_the_gate_as_its_makers_left_it(
    make: object, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    found = Pretrained.load(saved(make(), tokenizer, tmp_path))  # type: ignore[operator]
    assert found.vocab_size == 300
    assert found.continues == (make is not mamba)
    assert found.context_limit == {llama: 40, gpt2: 128, mamba: None}[make]  # type: ignore[index]
    gate = run_gate(found, length=31)
    assert not [check for check in gate.checks if not check.passed]


def test_flops_are_what_torch_counts_less_the_pairs_that_the_mask_hides(loaded: Pretrained) -> None:
    length, width, layers = 19, 16, 2
    eager = copy.deepcopy(loaded)
    eager.model.set_attn_implementation("eager")
    counted = checks.counted_flops(eager, length)
    hidden = layers * 4 * width * (length * length - length * (length + 1) // 2)
    assert loaded.flops(length, "prefill") == pytest.approx(counted["prefill"] - hidden, rel=2e-3)
    assert loaded.flops(length, "train") == pytest.approx(counted["train"] - 3 * hidden, rel=2e-3)
    assert loaded.flops(length, "step") == pytest.approx(counted["step"], rel=2e-3)


def test_what_cannot_be_had_ends_in_one_line(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^family pretrained: path is missing; .*path=FOLDER"):
        fit_to_size("pretrained", Config(), SizeConfig(), 256)
    with pytest.raises(ValueError, match="differ: give path alone"):
        Config(path="a", checkpoint="b")
    with pytest.raises(ValueError, match=r"^pretrained: .*nowhere: .+"):
        Pretrained.load(Config(path=str(tmp_path / "nowhere")))
    config = saved(llama(), tokenizer, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        Pretrained.load(config)


def test_code_beside_the_weights_does_not_run_unasked(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    config = saved(llama(), tokenizer, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ValueError, match="runs only with trust_remote_code=true"):
        Pretrained.load(config)


def test_gguf_is_loaded_from_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def from_pretrained(folder: str, **options: object) -> None:
        asked.append((folder, options))
        raise ImportError("Please install torch and gguf>=0.10.0 to load a GGUF checkpoint in PyTorch.")

    monkeypatch.setattr("baselines.pretrained.AutoTokenizer.from_pretrained", from_pretrained)
    with pytest.raises(ValueError, match=r"pip install 'ttt-bench\[gguf\]'"):
        Pretrained.load(Config(path=str(tmp_path / "model.gguf")))
    assert asked == [(str(tmp_path), {"trust_remote_code": False, "gguf_file": "model.gguf"})]


def test_every_convention_reads_the_same_bytes(loaded: Pretrained, tmp_path: Path) -> None:
    """A window over a whole document is its position curve, and blocks of targets share out the same losses."""
    free = Pretrained(llama(max_position_embeddings=512), loaded.tokenizer)
    text = np.frombuffer(TEXT.encode() * 2, np.uint8)
    documents = [TokenDocument(f"d{i}", text) for i in range(5)]

    def score(rows: np.ndarray, targets: int) -> np.ndarray:
        return free.score(torch.from_numpy(rows.astype(np.int64)), targets=targets).numpy()

    def told(done: int, total: int) -> None:
        assert done <= total

    size = len(text)
    position_curve(score, free.encode, documents, size, None, tmp_path / "p", tmp_path, told)
    windowed(score, free.encode, documents, size, size, size, None, tmp_path / "w", tmp_path, told)
    fixed_target(score, free.encode, documents, 128, 32, None, tmp_path / "f", tmp_path, told)
    position, window, fixed = (pd.read_parquet(tmp_path / name) for name in "pwf")
    for column in ("target_bytes", "nll"):
        for one, other in zip(position[column], window[column], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert {sum(row) for row in fixed["target_bytes"]} == {BLOCK}
    assert set(fixed["context"]) == {16, 32, 64, 128}
    whole = fixed[fixed["context"] == 128].iloc[0]
    assert whole["start"] == 128
    np.testing.assert_allclose(whole["nll"], shares_of(position, free, documents[0], 128), atol=1e-5)


def shares_of(position: pd.DataFrame, model: Pretrained, document: TokenDocument, start: int) -> list[float]:
    """What the losses of the position curve, spread over bytes, come to on one block, token by token."""
    sizes, found = model.encode(document.ids.tobytes()).sizes, {}
    token_of = np.repeat(np.arange(len(sizes)), sizes)
    for byte in range(start, start + BLOCK):
        token = int(token_of[byte])
        parts = [token]
        while sizes[parts[-1] - 1] == 0:
            parts.append(parts[-1] - 1)
        loss = sum(position["nll"][0][part - 1] for part in parts) / sizes[token]
        found[token] = found.get(token, 0.0) + loss
    return list(found.values())


def test_it_scores_the_same_tokens_in_half_precision(loaded: Pretrained) -> None:
    ids = torch.from_numpy(np.asarray(loaded.encode(TEXT.encode()).ids[:40]))[None]
    half = copy.copy(loaded)
    half.model = copy.deepcopy(loaded.model).bfloat16()
    torch.testing.assert_close(half.score(ids), loaded.score(ids), rtol=0, atol=0.1)
