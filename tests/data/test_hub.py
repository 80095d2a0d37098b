"""What `datasets` reads from local Parquet, JSON lines and Arrow is what was written, in order, split by split."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.config import DataConfig
from harness.data.documents import Document, parts_of
from harness.data.tokens import TokenStore
from tests.data.corpora import read

datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'ttt-bench[data]'")

ROWS = [{"text": f"text {i} – é", "other": i} for i in range(12)]
ENDINGS = ("parquet", "jsonl", "arrow")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    return str(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_are_read_in_order_under_the_names_of_their_rows(tmp_path: Path, ending: str) -> None:
    for i in range(2):
        write(tmp_path / f"{i}.{ending}", ROWS[6 * i : 6 * i + 6])
    documents = read(DataConfig("hf", f"{tmp_path}/*.{ending}"))
    names = [f"train-{i // 6:05d}:{i % 6}" for i in range(12)]
    assert documents == [Document(n, str(row["text"]).encode()) for n, row in zip(names, ROWS, strict=True)]
    single = DataConfig("hf", f"{tmp_path}/1.{ending}")
    assert [d.name for d in read(single)] == [f"train:{i}" for i in range(6)]
    assert len(parts_of(single)) == 1


def test_a_folder_has_splits_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-0.parquet", ROWS[:8])
    write(tmp_path / "data" / "validation-0.parquet", ROWS[8:])
    config = DataConfig("hf", str(tmp_path / "data"), test_split="validation")
    store = TokenStore.build(config, tmp_path)
    for split, rows in (("train", ROWS[:8]), ("test", ROWS[8:])):
        assert [d.text().decode() for d in store.documents(split)] == [row["text"] for row in rows]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^data\.path=.*nope.*train"):
        parts_of(DataConfig("hf", str(tmp_path / "data"), split="nope"))


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    tables = {split: datasets.Dataset.from_list(ROWS[:k]) for split, k in (("train", 5), ("test", 3))}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "dictionary")
    tables["train"].save_to_disk(tmp_path / "table")
    for folder, split, count in (("dictionary", "train", 5), ("dictionary", "test", 3), ("table", "train", 5)):
        found = read(DataConfig("hf", str(tmp_path / folder), split=split))
        assert [d.text.decode() for d in found] == [row["text"] for row in ROWS[:count]]
    with pytest.raises(ValueError, match=r"^data\.path=.*Bad split: nope.*\['test', 'train'\]"):
        parts_of(DataConfig("hf", str(tmp_path / "dictionary"), split="nope"))
    with pytest.raises(ValueError, match="what is read has one split"):
        parts_of(DataConfig("hf", str(tmp_path / "table"), test_split="test"))


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", ROWS)
    numbers = write(tmp_path / "n.jsonl", [{"text": "one"}, {"text": 2}])
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    (tmp_path / "x.csv").write_text("text")
    for config, message in (
        (DataConfig("hf", path, field="body"), r"^data\.field=body is no column of .*; its columns: text, other$"),
        (DataConfig("hf", path, test_split="test"), r"^data\.path=.*data\.test_split=test: what is read has one split"),
        (DataConfig("hf", numbers), r"^train:1: data\.field=text holds a int"),
        (DataConfig("hf", str(tmp_path / "bad.parquet")), r"^data\.path=.*bad\.parquet: "),
        (DataConfig("hf", str(tmp_path / "x.csv")), r"x\.csv must end in one of \.parquet, "),
        (DataConfig("hf", str(tmp_path / "none")), r"^data\.path=.*none: "),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read(config)
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"^data\.source=hf needs .*pip install 'ttt-bench\[data\]'"):
        parts_of(DataConfig("hf", path))


def test_a_data_set_of_the_hub_once_tokenised_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=3)
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.append((*names, options)) or rows)
    config = DataConfig("hf", "owner/name", name="subset", test_fraction=0.3)
    store = TokenStore.build(config, tmp_path)
    assert asked == [("owner/name", "subset", {"split": "train", "streaming": True})]
    assert len(store.counts("tokens", "train")) == 3
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: pytest.fail("it is asked for again"))
    assert TokenStore.build(config, tmp_path).hash == store.hash
