"""Sound becomes bytes in two encodings, channels and samples averaged; what is missing is named."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.data import audio
from harness.data.config import DataConfig
from harness.data.sources import Item, Part
from tests.data.corpora import read

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed: pip install 'ttt-bench[audio]'")


def wave(count: int = 400) -> np.ndarray:
    return 0.7 * np.sin(np.arange(count) / 9)


def config(folder: Path, **options: object) -> DataConfig:
    return DataConfig("audio", str(folder), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_recordings_of_both_kinds_become_a_byte_a_sample(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / f"a.{suffix}", wave(), 8000, subtype="PCM_16")
    (tmp_path / "notes.txt").write_text("no sound")
    (document,) = read(config(tmp_path))
    assert document.name == f"deep/a.{suffix}"
    values = np.frombuffer(document.text, np.uint8) / 255 * 2 - 1
    expanded = np.sign(values) * (256 ** np.abs(values) - 1) / 255
    np.testing.assert_allclose(expanded, wave(), atol=0.016)  # half a step of µ-law at full scale is 0.011


def test_sixteen_bits_are_two_bytes_and_samples_average(tmp_path: Path) -> None:
    stereo = np.stack([wave(), -0.5 * wave()], 1)
    soundfile.write(tmp_path / "a.wav", stereo, 8000, subtype="PCM_16")
    (document,) = read(config(tmp_path, encoding="pcm16", decimate=4))
    found = np.frombuffer(document.text, "<i2") / 32767
    np.testing.assert_allclose(found, (0.25 * wave()).reshape(-1, 4).mean(1), atol=1e-4)


def test_mu_law_uses_all_256_values_and_keeps_order() -> None:
    values = audio.mu_law(np.linspace(-1, 1, 100_001))
    assert set(values.tolist()) == set(range(256))
    assert (np.diff(values.astype(int)) >= 0).all()


def test_what_is_missing_or_damaged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"there is no \.wav, \.flac, \.ogg, \.aiff file in it"):
        read(config(tmp_path))
    (tmp_path / "a.wav").write_bytes(b"not sound")
    with pytest.raises(ValueError, match=r"a\.wav cannot be decoded"):
        read(config(tmp_path))
    with pytest.raises(ValueError, match=r"data\.encoding is 'mp3': must be one of mulaw, pcm16"):
        config(tmp_path, encoding="mp3")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ValueError, match=r"data\.source=speech needs eSpeak NG"):
        read(DataConfig("speech"))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ValueError, match=r"pip install 'ttt-bench\[audio\]'"):
        read(config(tmp_path))


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_speech_is_the_same_every_time_and_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [(name, b"the state of the union " + name.encode()) for name in "abcdefghi"]
    part = Part(lambda: (Item(name, text, 0) for name, text in texts), 0, "")
    monkeypatch.setattr(audio, "sotu", lambda _: [part])
    first, again = (read(DataConfig("speech", decimate=2)) for _ in range(2))
    assert first == again
    assert [document.name for document in first] == ["a", "e", "i"]
    samples = np.frombuffer(first[1].text, np.uint8)
    assert len(samples) > 5000
    assert samples.std() > 20
