"""Any fast tokenizer makes tokens that still know their bytes, in every split, and losses are per byte of the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from harness.data.config import DataConfig
from harness.data.documents import Document
from harness.data.tokenizer import load_tokenizer
from harness.data.tokens import TokenStore
from harness.data.vocabulary import Vocabulary
from harness.measure.fixed_target import fixed_target
from harness.measure.position import position_curve
from harness.measure.window import windowed
from harness.report.curves import read_scores
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


def test_losses_are_per_byte_of_the_text(store: TokenStore, tmp_path: Path) -> None:
    """A score of one nat a token is, per byte, tokens / bytes, under each convention."""
    documents, file = store.documents("test"), tmp_path / "nll.parquet"

    def one(rows: np.ndarray, targets: int) -> np.ndarray:
        return np.ones((len(rows), targets))

    def encode(document: object, tokens: int) -> object:
        return type("Encoded", (), {"ids": document.ids[:tokens], "sizes": document.bytes_of(0, tokens)})  # type: ignore[attr-defined]

    tail, rest = (one, documents, 20), (8, file, tmp_path, lambda done, total: None)
    curve = position_curve(one, encode, *tail[1:], *rest)  # type: ignore[arg-type]
    text = sum(len(document.text(20)) for document in documents)
    read = sum(min(len(document.ids), 20) for document in documents)
    assert (curve.bytes, curve.max_length, curve.train_length) == (
        text,
        round(20 * text / read),
        round(8 * text / read),
    )
    first = [int(document.bytes_of(0, 1)[0]) for document in documents]
    for values in (curve, windowed(*tail, 6, 6, *rest)):  # type: ignore[arg-type]
        scores = read_scores(file)
        assert values.tokens == read - len(documents)
        assert np.nansum(scores.nll) == pytest.approx(values.tokens - first.count(0))  # a mark alone is before byte 0
        assert np.nansum(scores.scored) == text - sum(max(size, 1) for size in first)
    import pyarrow.parquet as pq

    fixed_target(*tail, 16, *rest)  # type: ignore[arg-type]
    for row in pq.read_table(file).to_pylist():
        document = next(d for d in documents if d.name == row["document"])
        assert row["target_bytes"] == document.bytes_of(row["start"], row["start"] + 16).tolist()


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
