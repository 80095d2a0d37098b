"""Sound as bytes: recordings, or a synthesiser that reads the presidential messages aloud.

A byte is a sample in 8-bit µ-law (μ = 255: telephone speech, ITU-T G.711, without its segments), or half of a 16-bit
sample (low byte first), so every model that reads bytes reads sound, and bits per byte are bits per sample, or half of
them. Channels are averaged. Files are decoded by soundfile (libsndfile); speech is made by eSpeak NG. Both are found at
first use.
"""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.config import DataConfig
from harness.data.sources import Item, Part, files, sotu

MU = 255.0
SUFFIXES = (".wav", ".flac", ".ogg", ".aiff")
SPOKEN_BYTES, SPOKEN_EVERY = 300, 4
"""Of every fourth message so many bytes of text are spoken: twenty seconds each, twenty minutes together."""


def recordings(config: DataConfig) -> list[Part]:
    """The sound files under `path`, each a document."""
    root = Path(str(config.path)).expanduser()
    if not root.is_dir():
        raise ValueError(f"data.path is {config.path!r}: there is no folder {root.absolute()}")
    paths = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES]
    none_found = f"data.path is {config.path!r}: there is no {', '.join(SUFFIXES)} file in it"
    return [files(root, paths, none_found, lambda path: encoded(_decoded(path), config))]


def speech(config: DataConfig) -> list[Part]:
    """The beginnings of presidential messages, spoken."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise ValueError("data.source=speech needs eSpeak NG (apt-get install espeak-ng, brew install espeak-ng)")
    _soundfile()
    (messages,) = sotu(config)
    return [Part(lambda: _speeches(program, messages, config), messages.size, messages.stamp)]


def _speeches(program: str, messages: Part, config: DataConfig) -> Iterator[Item]:
    for name, text, read in itertools.islice(messages.items(), 0, None, SPOKEN_EVERY):
        yield Item(name, encoded(_spoken(program, text[:SPOKEN_BYTES]), config), read)


def encoded(samples: NDArray[np.float64], config: DataConfig) -> bytes:
    """Samples in -1 … 1, of which each `decimate`-th mean is kept, in the bytes that `encoding` says."""
    whole = samples[: len(samples) // config.decimate * config.decimate]
    kept = whole.reshape(-1, config.decimate).mean(1)
    return mu_law(kept).tobytes() if config.encoding == "mulaw" else np.round(kept * 32767).astype("<i2").tobytes()


def mu_law(samples: NDArray[np.float64]) -> NDArray[np.uint8]:
    """sign(x) log(1 + μ|x|) / log(1 + μ), from -1 … 1 to 0 … 255."""
    compressed = np.sign(samples) * np.log1p(MU * np.abs(samples)) / np.log1p(MU)
    return np.round((compressed + 1) / 2 * 255).astype(np.uint8)


def _spoken(program: str, text: bytes) -> NDArray[np.float64]:
    done = subprocess.run([program, "--stdout", "--stdin", "-v", "en-us"], input=text, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"data.source=speech: espeak-ng failed: {done.stderr.decode(errors='replace').strip()}")
    return _decoded(io.BytesIO(_repaired(done.stdout)))


def _repaired(wav: bytes) -> bytes:
    """A streamed WAV carries no sizes in its header; these are they."""
    sizes = (len(wav) - 8).to_bytes(4, "little"), (len(wav) - 44).to_bytes(4, "little")
    return wav[:4] + sizes[0] + wav[8:40] + sizes[1] + wav[44:]


def _decoded(file: Path | io.BytesIO) -> NDArray[np.float64]:
    soundfile = _soundfile()
    try:
        samples, _ = soundfile.read(file, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{file} cannot be decoded: {error}") from None
    mean: NDArray[np.float64] = samples.mean(1)
    return mean


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise ValueError(f"sound needs the package soundfile: pip install 'ttt-bench[audio]' ({error})") from None
    return soundfile
