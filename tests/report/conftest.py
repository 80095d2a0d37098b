"""One made-up run folder and its report, shared by the tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.report import render
from tests.report.sample import build


@pytest.fixture(scope="session")
def unrendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of four models and two floors."""
    return build(tmp_path_factory.mktemp("sample") / "run")


@pytest.fixture(scope="session")
def run_folder(unrendered: Path) -> Path:
    """The same, rendered."""
    assert render(unrendered) == unrendered / "report" / "report.html"
    return unrendered
