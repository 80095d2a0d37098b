"""Documents come in one order under stable names, and nothing that is held out has a copy in training."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from harness.data.config import DataConfig
from harness.data.documents import Document, load_documents, split_documents, split_of


def folder_of(root: Path, texts: dict[str, bytes]) -> str:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text)
    return str(root)


def lines_of(path: Path, *rows: Any) -> str:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def test_folder_reads_matching_files_sorted_by_name(tmp_path: Path) -> None:
    path = folder_of(
        tmp_path, {"b.txt": b"bb", "a/z.txt": b"\xff\x00z", "a.md": b"no", "empty.txt": b"", "1.txt": b"1"}
    )
    assert load_documents(DataConfig("folder", path)) == [Document("a/z.txt", b"\xff\x00z"), Document("b.txt", b"bb")]
    assert [d.name for d in load_documents(DataConfig("folder", path, pattern="*.md"))] == ["a.md"]
    assert [d.name for d in load_documents(DataConfig("folder", path, min_bytes=3))] == ["a/z.txt"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_jsonl_names_documents_by_line(tmp_path: Path, name: str) -> None:
    path = lines_of(tmp_path / name, {"text": "één"}, "", {"text": "two", "other": 3})
    documents = load_documents(DataConfig("jsonl", path))
    assert documents == [Document(f"{name}:1", "één".encode()), Document(f"{name}:3", b"two")]


def test_stdlib_leaves_out_tests_packages_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"os.py": b"import sys", "json/decoder.py": b"import re"}
    dropped = ["site-packages/numpy/x.py", "test/test_os.py", "idlelib/idle_test/x.py", "encodings/cp1.py", "x.txt"]
    path = folder_of(tmp_path, kept | dict.fromkeys(dropped, b"not me"))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": path})
    assert {d.name: d.text for d in load_documents(DataConfig("stdlib"))} == kept


def test_stdlib_finds_the_running_library() -> None:
    documents = load_documents(DataConfig("stdlib", min_bytes=32 * 1024))
    assert "argparse.py" in [d.name for d in documents]
    assert len(documents) > 50


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"text": "ok"}, "{text: no}"], ["x.jsonl:2", "not JSON"]),
        ([{"text": "ok"}, ["text"]], ["x.jsonl:2", "list", "'text'"]),
        ([{"body": "ok", "id": 1}], ["x.jsonl:1", "data.field=text is missing", "body"]),
        ([{"text": 7}], ["x.jsonl:1", "data.field=text holds a int"]),
        (['{"text": "\\ud800"}'], ["x.jsonl:1", "data.field=text", "Unicode"]),
        ([{"text": "a"}, ""], ["x.jsonl", "1 found", "at least 2 bytes"]),
        ([""], ["x.jsonl", "0 found"]),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, rows: list[Any], named: list[str]) -> None:
    check_error(DataConfig("jsonl", lines_of(tmp_path / "x.jsonl", *rows)), named)


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of(tmp_path / "texts", {"a.txt": b"aa"})
    check_error(DataConfig("folder", f"{path}/none"), ["data.path", f"{path}/none"])
    check_error(DataConfig("folder", path, pattern="*.md"), ["data.pattern", "'*.md'", path])
    check_error(DataConfig("folder", path, pattern="../**x/["), ["data.pattern", "'../**x/['"])
    check_error(
        DataConfig("folder", path, min_bytes=3), ["at least 3 bytes", "1 found", "of 2 bytes", "data.min_bytes=3"]
    )
    check_error(DataConfig("jsonl", f"{path}/x.jsonl"), ["data.path", f"{path}/x.jsonl"])
    torn = Path(lines_of(tmp_path / "x.jsonl.gz", {"text": "ok" * 99}))
    torn.write_bytes(torn.read_bytes()[:-9])
    check_error(DataConfig("jsonl", str(torn)), ["data.path", "gzip"])
    torn.write_bytes(b"plain")
    check_error(DataConfig("jsonl", str(torn)), ["data.source=jsonl", str(torn), "gzip"])
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": f"{path}/none"})
    check_error(DataConfig("stdlib"), ["data.source=stdlib", f"{path}/none"])


def check_error(config: DataConfig, named: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_documents(config)
    assert "\n" not in str(error.value)
    for part in named:
        assert part in str(error.value)


def test_split_is_the_same_everywhere() -> None:
    documents = [Document(f"{i}", f"text {i}".encode()) for i in range(16)]
    for seed, expected in {0: ".xxxx..x.x..x.xx", 1: "xxx.x..xxxxxxxx."}.items():
        config = DataConfig("sotu", test_fraction=0.5, split_seed=seed)
        assert "".join(".x"[split_of(d, config) == "test"] for d in documents) == expected


def test_test_fraction_is_the_share_held_out() -> None:
    config = DataConfig("sotu", test_fraction=0.1)
    splits = [split_of(Document("", f"{i}".encode()), config) for i in range(5000)]
    assert 440 < splits.count("test") < 560  # 500 ± 3 standard deviations of 21


def test_copies_of_a_text_share_a_split() -> None:
    config = DataConfig("sotu", test_fraction=0.5)
    for i in range(20):
        text = f"line {i}\nend\n".encode()
        copies = [text, text.replace(b"\n", b"\r\n"), text.rstrip(), b"  " + text]
        assert len({split_of(Document(f"name {j}", copy), config) for j, copy in enumerate(copies)}) == 1


@pytest.mark.parametrize(("fraction", "missing"), [(1e-9, "no test document"), (1 - 1e-9, "no train document")])
def test_an_empty_split_is_refused(fraction: float, missing: str) -> None:
    documents = [Document("a", b"aa"), Document("b", b"bb")]
    with pytest.raises(ValueError, match=rf"^data\.test_fraction=.* leaves {missing} of 2: .*data\.split_seed"):
        split_documents(documents, DataConfig("sotu", test_fraction=fraction))


def test_no_torch_no_pandas_no_transformers_is_loaded() -> None:
    code = (
        "import sys, harness.data.batches, harness.data.ngram, harness.data.tokenizer\n"
        "from harness.data.config import DataConfig\n"
        "from harness.data.documents import load_documents\n"
        "print(len(load_documents(DataConfig('sotu'))), {'torch', 'pandas', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "249 set()"
