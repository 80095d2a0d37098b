"""One made-up run folder and its report, shared by the tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.report import render
from tests.report.sample import build


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of four models and two floors, rendered."""
    folder = build(tmp_path_factory.mktemp("sample") / "run")
    assert render(folder) == folder / "report" / "report.html"
    return folder
