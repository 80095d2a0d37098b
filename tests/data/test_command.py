"""`python -m harness.data` makes what runs find, and a run refuses at once what its tokens cannot give."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from harness.config import RunConfig
from harness.data import corpus
from harness.data.__main__ import main
from harness.data.config import DataConfig
from harness.data.tokens import TokenStore
from harness.measure.config import MeasureConfig
from harness.measure.recall.config import RecallConfig
from harness.run import check_tokens
from tests.data.corpora import TEXT, bpe, lines_of

ROWS = [{"text": f"{TEXT} {i}"} for i in range(30)]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["harness.data", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_what_the_command_makes_is_what_a_run_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines_of(tmp_path / "x.jsonl", *ROWS)
    assert run(["data=jsonl", f"data.path={path}", f"output={tmp_path}"], monkeypatch) == 0
    found = capsys.readouterr().out
    monkeypatch.setattr(corpus, "shard_of", lambda *work: pytest.fail("it is made again"))
    store = TokenStore.build(DataConfig("jsonl", path), tmp_path)
    for part in (str(store.folder), "vocabulary 256", f"{store.total('tokens', 'train'):,}", "1.000"):
        assert part in found
    assert run(["data=jsonl", f"data.path={tmp_path}/none.jsonl"], monkeypatch) == 2
    assert capsys.readouterr().err.startswith("error: data.path is ")


def test_what_tokens_cannot_give_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bpe().save(str(tmp_path / "tokenizer.json"))
    path = lines_of(tmp_path / "x.jsonl", *ROWS)
    config = RunConfig(data=DataConfig("jsonl", path, tokenizer=str(tmp_path / "tokenizer.json")))
    tokens, in_bytes = TokenStore.build(config.data, tmp_path), TokenStore.build(DataConfig("jsonl", path), tmp_path)

    def measuring(**options: object) -> RunConfig:
        return dataclasses.replace(config, measure=MeasureConfig(**options))  # type: ignore[arg-type]

    recall = measuring(recall=RecallConfig(tasks=["passkey"]))
    check_tokens(recall, in_bytes)
    with pytest.raises(ValueError, match=r"measure\.recall\.tasks asks in bytes: choose data\.tokenizer=bytes"):
        check_tokens(recall, tokens)
    check_tokens(measuring(ngrams=[3, 4]), tokens)
    monkeypatch.setattr(tokens, "vocab_size", 128_256)
    with pytest.raises(ValueError, match=r"measure\.ngrams: an n-gram of order 4 over 128256 tokens"):
        check_tokens(measuring(ngrams=[3, 4]), tokens)
    monkeypatch.setattr("harness.run.MOST_TOKENS", 100)
    with pytest.raises(
        ValueError, match=r"measure\.ngrams=\[3\]: .* at most 100 training tokens.*measure\.ngrams=\[\]"
    ):
        check_tokens(measuring(ngrams=[3]), tokens)
    check_tokens(measuring(ngrams=[]), tokens)
