"""The data config refuses what cannot work in one line, and its YAML files say all of its keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

import conf
from harness.data.config import SOURCES, DataConfig

YAML_FILES = sorted((Path(conf.__path__[0]) / "data").glob("*.yaml"))
SOURCE_FILES = [path for path in YAML_FILES if "source" in yaml.safe_load(path.read_text())]
"""The others are data sets by name, on top of one of these."""


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"source": "books"}, ["data.source", "'books'", "sotu, stdlib, folder, jsonl, hf, audio, speech"]),
        ({"source": "folder"}, ["data.path", "data.source=folder"]),
        ({"source": "jsonl"}, ["data.path", ".jsonl"]),
        ({"source": "hf"}, ["data.path", "a name on the Hugging Face hub"]),
        ({"source": "sotu", "path": "x"}, ["data.path", "'x'", "folder or jsonl or hf or audio"]),
        ({"source": "stdlib", "path": "x"}, ["data.path", "'x'", "folder or jsonl"]),
        ({"source": "jsonl", "path": "x.json"}, ["data.path", "'x.json'", ".jsonl, .jsonl.gz or .jsonl.zst"]),
        ({"source": "jsonl", "path": "x.jsonl", "test_path": "y.zst"}, ["data.test_path", "'y.zst'", ".jsonl.zst"]),
        ({"source": "jsonl", "path": "x.jsonl", "name": "y"}, ["data.name", "'y'", "data.source=jsonl; use hf"]),
        ({"source": "hf", "path": "x", "test_path": "y"}, ["data.test_path", "use folder or jsonl"]),
        ({"source": "folder", "path": "x", "test_split": "y"}, ["data.test_split", "use hf"]),
        ({"source": "folder", "path": "x", "pattern": ""}, ["data.pattern", "''"]),
        ({"source": "folder", "path": "x", "pattern": "/x/*.txt"}, ["data.pattern", "'/x/*.txt'", "relative"]),
        ({"source": "jsonl", "path": "x.jsonl", "field": ""}, ["data.field"]),
        ({"source": "hf", "path": "x", "split": ""}, ["data.split is empty", "as in train"]),
        ({"source": "sotu", "tokenizer": ""}, ["data.tokenizer is empty", "as in bytes"]),
        ({"source": "speech", "tokenizer": "gpt2"}, ["data.tokenizer", "'gpt2'", "must be bytes"]),
        ({"source": "sotu", "processes": 0}, ["data.processes", "at least 1"]),
        ({"source": "sotu", "test_fraction": 0.0}, ["data.test_fraction", "0.0", "between 0 and 1"]),
        ({"source": "sotu", "test_fraction": 1.0}, ["data.test_fraction", "1.0", "between 0 and 1"]),
        ({"source": "audio"}, ["data.path", "the folder of the documents"]),
        ({"source": "audio", "path": "x", "encoding": "mp3"}, ["data.encoding", "mulaw, pcm16"]),
        ({"source": "audio", "path": "x", "decimate": 0}, ["data.decimate", "at least 1"]),
        ({"source": "sotu", "min_bytes": -1}, ["data.min_bytes", "-1"]),
    ],
)
def test_impossible_settings_end_in_one_line_that_names_the_key(keys: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        DataConfig(**keys)
    message = str(error.value)
    assert "\n" not in message
    for part in named:
        assert part in message


def test_every_source_has_a_yaml_file() -> None:
    assert {path.stem for path in SOURCE_FILES} == set(SOURCES)


@pytest.mark.parametrize("path", SOURCE_FILES, ids=lambda path: path.stem)
def test_yaml_states_every_key_and_its_default(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# ")
    assert values["source"] == path.stem
    given: dict[str, Any] = {"path": "x.jsonl"} if path.stem in ("folder", "jsonl", "hf", "audio") else {}
    given |= {"decimate": 2} if path.stem == "speech" else {}
    assert values | given == dataclasses.asdict(DataConfig(source=path.stem, **given))
