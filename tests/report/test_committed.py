"""The runs kept in results/ are whole: drawing one again from its records gives the page that was committed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.report import render

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted(path.parent.parent for path in RESULTS.glob("*/report/summary.md"))


@pytest.mark.usefixtures("bare_figures")
@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_a_committed_run_is_drawn_again(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("report"))
    render(copy)
    summary = Path("report") / "summary.md"
    assert (copy / summary).read_text() == (folder / summary).read_text()


def test_the_quickstart_is_kept() -> None:
    assert "quickstart" in [folder.name for folder in COMMITTED]
