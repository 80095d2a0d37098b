"""Any fast tokenizer makes tokens that still know their bytes, in every split, and losses are per byte of the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from harness.config import RunConfig
from harness.data.config import DataConfig
from harness.data.documents import Document
from harness.data.tokenizer import load_tokenizer
from harness.data.tokens import TokenStore
from harness.data.vocabulary import Vocabulary
from harness.jobs import Job
from harness.measure.config import MeasureConfig
from harness.report.curves import read_scores
from harness.session import FloorSession
from harness.train.config import TrainConfig
from tests.data.corpora import TEXT, bpe, lines_of, llama_like

TEXTS = [TEXT[i:] + TEXT * (i % 3) + str(i) for i in range(30)]
TOKENIZERS = {"bpe": bpe, "llama_like": llama_like}


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json that would also cut every text after five tokens."""
    tokenizer: Tokenizer = TOKENIZERS[request.param]()
    tokenizer.enable_truncation(5)
    file = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture(scope="module", params=[False, True], ids=["", "packed"])
def store(path: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("store")
    lines = lines_of(folder / "x.jsonl", *({"text": text} for text in TEXTS))
    config = DataConfig("jsonl", lines, tokenizer=str(path), test_fraction=0.4, pack=request.param)
    return TokenStore.build(config, folder)


def ids_of(path: Path, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_training_documents_are_the_tokenizers_ids_closed_where_they_are_packed(store: TokenStore, path: Path) -> None:
    end = [Vocabulary.named(str(path)).end] if store.pack else []
    documents = store.documents("train")
    assert len(documents) > 10
    for document in documents:
        text = TEXTS[int(document.name.split(":")[1]) - 1]
        assert document.ids.tolist() == ids_of(path, text) + end
        assert document.ids.dtype == np.uint16
        assert document.sizes is None
    assert store.vocab_size == Tokenizer.from_file(str(path)).get_vocab_size()


def test_test_documents_know_their_text_and_the_bytes_of_each_token(store: TokenStore, path: Path) -> None:
    for document in store.documents("test"):
        text = TEXTS[int(document.name.split(":")[1]) - 1]
        assert document.ids.tolist() == ids_of(path, text)
        assert document.text() == text.encode()
        sizes = document.bytes_of(0, len(document.ids))
        assert sizes.sum() == len(text.encode())
        assert [len(document.text(n)) for n in range(5)] == [0, *np.cumsum(sizes[:4])]
        assert text.encode().startswith(document.text(9))


def test_the_tokenizer_lies_beside_the_tokens(store: TokenStore, path: Path) -> None:
    tokenizer = store.tokenizer()
    assert tokenizer(TEXT, add_special_tokens=False, truncation=False)["input_ids"] == ids_of(path, TEXT)
    assert tokenizer.eos_token_id == Vocabulary.named(str(path)).end


def test_losses_are_per_byte_of_the_text(store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score of one nat a token is, per byte, tokens / bytes, under each convention; lengths are bytes."""
    train, measure = TrainConfig(length=8, tokens=64, batch_size=1), MeasureConfig(max_length=20, window=6, targets=16)
    config = RunConfig(train=train, folder=str(tmp_path), measure=measure)
    monkeypatch.setattr(FloorSession, "train_length", lambda self: 8)
    session = FloorSession(Job("2-gram", 0, None, config, "cpu", store.folder), lambda told: None)
    monkeypatch.setattr(session, "score", lambda: lambda rows, targets: np.ones((len(rows), targets)))
    documents, ratio = store.documents("test"), store.bytes_a_token("test")
    assert ratio > 1.1
    for document in documents:
        ids, sizes = session.encode(document.text())
        assert ids.tolist() == document.ids.tolist()
        assert sizes.tolist() == document.bytes_of(0, len(ids)).tolist()
    limit = round(20 * ratio)
    curve = session.position()
    assert (curve.max_length, curve.train_length) == (limit, round(8 * ratio))
    assert curve.bytes == sum(min(document.size, limit) for document in documents)
    for values in (curve, session.window()):
        scores = read_scores(tmp_path / values.nll_file)
        first = [int(document.bytes_of(0, 1)[0]) for document in documents]
        assert np.nansum(scores.nll) == pytest.approx(values.tokens - first.count(0))  # a mark alone is before byte 0
        assert np.nansum(scores.scored) > 0.8 * curve.bytes
    fixed = session.fixed_target()
    table = pq.read_table(tmp_path / fixed.nll_file).to_pylist()
    assert {sum(row["target_bytes"]) for row in table} == {16}
    assert max(row["context"] for row in table) <= limit


def test_a_folder_names_its_own_end_and_the_widest_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=bpe(), eos_token=",").save_pretrained(tmp_path)
    vocabulary = Vocabulary.named(str(tmp_path))
    assert vocabulary.end == bpe().token_to_id(",")
    assert Vocabulary.named("bytes") == Vocabulary(256, 0, None)
    assert [Vocabulary(size).dtype.itemsize for size in (256, 257, 65536, 65537)] == [1, 2, 2, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.json", r"^data\.tokenizer=.*none\.json: "), ("", r"^data\.tokenizer=.*: .*(config|tokenizer)")],
)
def test_a_tokenizer_that_cannot_be_had_is_refused_in_a_line(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_what_does_not_go_together_is_refused_in_a_line(tmp_path: Path) -> None:
    bpe().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"^a\.txt is not UTF-8 \(.*data\.tokenizer=bytes$"):
        TokenStore.build(DataConfig("folder", str(tmp_path), tokenizer=str(tmp_path / "tokenizer.json")), tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=bpe()).save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match=r"^data\.pack: the tokenizer .* names no end-of-text token"):
        TokenStore.build(DataConfig("sotu", tokenizer=str(tmp_path / "endless"), pack=True), tmp_path)


def test_texts_go_through_in_batches_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.data.vocabulary.BYTES_AT_ONCE", 300)
    vocabulary = Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=bpe()))
    documents = [Document(str(i), text.encode()) for i, text in enumerate(TEXTS)]
    found = [tokens.ids.tolist() for tokens in vocabulary.encode(documents, with_sizes=False)]
    assert found == [bpe().encode(text).ids for text in TEXTS]
    assert list(vocabulary.encode([], with_sizes=True)) == []
