"""What all tests share: few threads, no hub, the README's own baseline outside the checkout, bare figures."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="passive")

from tests import readme


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout that holds the files the README shows (`mine/gru.py`, `mine/model/my_gru.yaml`)."""
    folder = tmp_path_factory.mktemp("workplace")
    for name, text in readme.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    sys.path.insert(0, str(folder))
    return folder


@pytest.fixture
def bare_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of a report are made and laid out, and their files left empty: `tests/report` looks at what is drawn."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).write_text("<svg></svg>"))
