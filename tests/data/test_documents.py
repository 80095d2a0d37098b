"""Documents come in one order under stable names, and nothing that is held out has a copy in training."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from harness.data.config import DataConfig
from harness.data.documents import Document, split_of
from harness.data.tokens import TokenStore
from tests.data.corpora import compressed, folder_of, lines_of, read


def test_folder_reads_matching_files_sorted_by_name(tmp_path: Path) -> None:
    path = folder_of(tmp_path, {"b.txt": b"bb", "a/z.txt": b"\xff\x00z", "a.md": b"no", "b/1.txt": b"1"})
    found = read(DataConfig("folder", path))
    assert found == [Document("a/z.txt", b"\xff\x00z"), Document("b.txt", b"bb"), Document("b/1.txt", b"1")]
    assert [d.name for d in read(DataConfig("folder", path, pattern="*.md"))] == ["a.md"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_names_documents_by_line(tmp_path: Path, suffix: str) -> None:
    path = lines_of(tmp_path / f"x.jsonl{suffix}", {"text": "één"}, "", {"text": "two", "other": 3})
    documents = read(DataConfig("jsonl", path))
    assert documents == [Document(f"x.jsonl{suffix}:1", "één".encode()), Document(f"x.jsonl{suffix}:3", b"two")]


def test_jsonl_reads_what_a_pattern_matches_in_order(tmp_path: Path) -> None:
    for name in ("b/10.jsonl", "a.jsonl", "b/02.jsonl"):
        lines_of(tmp_path / name, {"text": f"in {name}"})
    documents = read(DataConfig("jsonl", f"{tmp_path}/**/*.jsonl"))
    assert [d.name for d in documents] == ["a.jsonl:1", "b/02.jsonl:1", "b/10.jsonl:1"]
    assert [d.name for d in read(DataConfig("jsonl", f"{tmp_path}/b/*.jsonl"))] == ["02.jsonl:1", "10.jsonl:1"]


def test_frames_of_zstandard_follow_each_other(tmp_path: Path) -> None:
    frames = [compressed(b'{"text": "a', ".zst"), compressed(b'b"}\n{"text": "c"}\n', ".zst")]
    (tmp_path / "x.jsonl.zst").write_bytes(b"".join(frames))
    assert [d.text for d in read(DataConfig("jsonl", str(tmp_path / "x.jsonl.zst")))] == [b"ab", b"c"]


@pytest.mark.parametrize("source", ["folder", "jsonl"])
def test_a_test_set_of_its_own_is_held_out_and_nothing_else(tmp_path: Path, source: str) -> None:
    texts = {f"{split}/{i}.txt": f"{split} {i}".encode() for split in ("train", "valid") for i in range(9)}
    folder_of(tmp_path, texts)
    for split in ("train", "valid"):
        lines_of(tmp_path / f"{split}.jsonl", *({"text": f"{split} {i}"} for i in range(9)))
    ending = ".jsonl" if source == "jsonl" else ""
    config = DataConfig(source, f"{tmp_path}/train{ending}", test_path=f"{tmp_path}/valid{ending}")
    store = TokenStore.build(config, tmp_path)
    for split, name in (("train", "train"), ("test", "valid")):
        assert [d.text() for d in store.documents(split)] == [f"{name} {i}".encode() for i in range(9)]  # type: ignore[arg-type]


def test_stdlib_leaves_out_tests_packages_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"os.py": b"import sys", "json/decoder.py": b"import re"}
    dropped = ["site-packages/numpy/x.py", "test/test_os.py", "idlelib/idle_test/x.py", "encodings/cp1.py", "x.txt"]
    path = folder_of(tmp_path, kept | dict.fromkeys(dropped, b"not me"))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": path})
    assert {d.name: d.text for d in read(DataConfig("stdlib"))} == kept


def test_stdlib_finds_the_running_library() -> None:
    long = [d.name for d in read(DataConfig("stdlib")) if len(d.text) >= 32 * 1024]
    assert "argparse.py" in long
    assert len(long) > 50


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
    check_error(DataConfig("jsonl", lines_of(tmp_path / "x.jsonl", *rows)), tmp_path, named)


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of(tmp_path / "texts", {"a.txt": b"aa"})
    short = DataConfig("folder", path, min_bytes=3)
    check_error(DataConfig("folder", f"{path}/none"), tmp_path, ["data.path", f"{path}/none"])
    check_error(DataConfig("folder", path, pattern="*.md"), tmp_path, ["data.pattern", "'*.md'", path])
    check_error(DataConfig("folder", path, pattern="../**x/["), tmp_path, ["data.pattern", "'../**x/['"])
    check_error(DataConfig("folder", path, test_path=f"{path}/no"), tmp_path, ["data.test_path", f"{path}/no"])
    check_error(short, tmp_path, ["at least 3 bytes", "1 found", "of 2 bytes", "data.min_bytes=3"])
    check_error(DataConfig("jsonl", f"{path}/x.jsonl"), tmp_path, ["data.path", f"{path}/x.jsonl"])
    check_error(DataConfig("jsonl", f"{path}/*.jsonl"), tmp_path, ["data.path", f"{path}/*.jsonl"])
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": f"{path}/none"})
    check_error(DataConfig("stdlib"), tmp_path, ["data.source=stdlib", f"{path}/none"])


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str) -> None:
    torn = Path(lines_of(tmp_path / f"x.jsonl{suffix}", {"text": "ok" * 99}))
    torn.write_bytes(torn.read_bytes()[:-9])
    check_error(DataConfig("jsonl", str(torn)), tmp_path, ["data.path", f"x.jsonl{suffix} is damaged"])
    torn.write_bytes(b"plain")
    check_error(DataConfig("jsonl", str(torn)), tmp_path, ["data.path", str(torn), "not what its name says"])


def check_error(config: DataConfig, root: Path, named: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        TokenStore.build(config, root)
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
def test_an_empty_split_is_refused(tmp_path: Path, fraction: float, missing: str) -> None:
    path = folder_of(tmp_path / "texts", {"a.txt": b"aa", "b.txt": b"bb"})
    with pytest.raises(ValueError, match=rf"^data\.test_fraction=.* leaves {missing} of 2: .*data\.split_seed"):
        TokenStore.build(DataConfig("folder", path, test_fraction=fraction), tmp_path)


def test_no_torch_no_pandas_no_transformers_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, harness.data.batches, harness.data.ngram\n"
        "from pathlib import Path\n"
        "from harness.data.config import DataConfig\n"
        "from harness.data.tokens import TokenStore\n"
        "store = TokenStore.build(DataConfig('sotu'), Path(sys.argv[1]))\n"
        "heavy = {'torch', 'pandas', 'transformers', 'tokenizers', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "print(len(store.documents('train')), len(store.documents('test')), heavy)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "222 27 set()"
