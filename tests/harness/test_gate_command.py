"""`python -m harness.gate`: a table a reader understands, and an exit code a script does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.gate.__main__ import main


def gate(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["harness.gate", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_user_s_own_model_passes(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert gate(monkeypatch, "--config-dir", str(workplace / "mine"), "model=[my_gru]", "size=tiny") == 0
    shown = capfd.readouterr().out
    assert "gru" in shown
    assert "causal: future changed" in shown
    assert shown.count("✓") == 8
    assert "✗" not in shown


def test_what_fails_is_marked_and_is_the_exit_code(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = "+model.bad={family:tests.harness.broken,fault:nan}"
    assert gate(monkeypatch, "--config-dir", str(workplace / "mine"), "model=[my_gru]", bad, "size=tiny") == 1
    shown = capfd.readouterr().out
    (finite,) = [line for line in shown.splitlines() if "finite" in line]
    assert finite.count("✓") == finite.count("✗") == 1


def test_a_model_that_cannot_be_built_says_why(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (workplace / "not_a_gru").mkdir(exist_ok=True)
    (workplace / "not_a_gru" / "config.json").write_text("{}")
    checkpoint = f"model.my_gru.checkpoint={workplace / 'not_a_gru'}"
    assert gate(monkeypatch, "--config-dir", str(workplace / "mine"), "model=[my_gru]", checkpoint) == 1
    assert "gru: ValueError: " in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argument", "words"),
    [("size=none", "size=none: no such option"), ("model.my_gru.checkpoint=nowhere", "no such folder")],
)
def test_what_is_wrong_is_one_line(
    argument: str, words: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert gate(monkeypatch, "--config-dir", str(workplace / "mine"), "model=[my_gru]", argument) == 2
    captured = capfd.readouterr()
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1
