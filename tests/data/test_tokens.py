"""A token store holds the bytes of each document under a hash that covers all that matters, and is built once."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from harness.data.config import DataConfig
from harness.data.documents import Document, Split, load_documents, split_of
from harness.data.tokens import TokenStore, content_hash

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
    assert found == {d.name: (d.text, split_of(d, config)) for d in load_documents(config)}


def test_ids_are_views_that_cannot_be_written(config: DataConfig, tmp_path: Path) -> None:
    ids = TokenStore.build(config, tmp_path).documents("train")[0].ids
    assert type(ids) is np.ndarray
    assert ids.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_hash_is_the_same_everywhere(config: DataConfig, tmp_path: Path) -> None:
    assert TokenStore.build(config, tmp_path).hash[:16] == "793770df1ef4a602"


def test_hash_covers_names_texts_splits_and_borders() -> None:
    base = [Document("a", b"xy"), Document("b", b"zz")]
    variants: list[tuple[list[Document], list[Split]]] = [
        (base, ["train", "test"]),
        (base, ["test", "train"]),
        ([Document("a", b"xy"), Document("c", b"zz")], ["train", "test"]),
        ([Document("a", b"xy"), Document("b", b"zy")], ["train", "test"]),
        ([Document("a", b"xyz"), Document("b", b"z")], ["train", "test"]),
        ([Document("ax", b"y"), Document("b", b"zz")], ["train", "test"]),
    ]
    assert len({content_hash(documents, splits) for documents, splits in variants}) == len(variants)


def test_a_whole_store_is_not_written_again(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TokenStore.build(config, tmp_path)
    monkeypatch.setattr("harness.data.tokens._write_file", lambda path, content: pytest.fail(f"{path} is written"))
    assert TokenStore.build(config, tmp_path).hash == store.hash
    monkeypatch.undo()
    (tmp_path / "texts" / "0.txt").write_bytes(b"changed")
    assert TokenStore.build(config, tmp_path).hash != store.hash
    assert len(list((tmp_path / "tokens").iterdir())) == 2


@pytest.mark.parametrize("damage", ["short", "no index", "torn index"])
def test_a_damaged_store_is_refused_by_open_and_mended_by_build(
    config: DataConfig, tmp_path: Path, damage: str
) -> None:
    folder = TokenStore.build(config, tmp_path).folder
    ids, index = folder / "ids.bin", folder / "index.json"
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
    assert json.loads(index.read_text())["borders"][-1] == len(whole)


def test_several_may_build_at_once(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = 4
    barrier = threading.Barrier(workers)
    rename = Path.rename

    def rename_together(self: Path, target: Path) -> Path:
        barrier.wait(timeout=20)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_together)
    with ThreadPoolExecutor(workers) as pool:
        stores = list(pool.map(lambda _: TokenStore.build(config, tmp_path), range(workers)))
    assert len({store.hash for store in stores}) == 1
    assert list((tmp_path / "tokens").iterdir()) == [stores[0].folder]


def test_unknown_split_is_refused(config: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'valid': must be one of train, test"):
        TokenStore.build(config, tmp_path).documents("valid")  # type: ignore[arg-type]
