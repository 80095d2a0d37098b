"""Families are found by file, by dotted module, and by the entry points of installed packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from baselines import registry
from baselines.registry import families, find


@pytest.fixture
def package(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that adds the README's GRU, and one family that it forgot to ship."""
    info = tmp_path / "gru_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gru-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nshipped = mine.gru\nforgotten = mine.nothing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._added.cache_clear()
    yield
    registry._added.cache_clear()


def test_a_package_adds_a_family(package: None) -> None:
    assert {"shipped", "transformer"} <= set(families())
    assert find("shipped") is find("mine.gru")


def test_a_missing_module_is_named(package: None) -> None:
    with pytest.raises(
        ValueError, match=r"family 'forgotten': its package names a module 'mine\.nothing', which there"
    ):
        find("forgotten")


def test_an_unknown_family_is_answered_with_the_choices(package: None) -> None:
    with pytest.raises(ValueError, match=r"no family 'grue'; choose one of .*mamba.*shipped.*, or a dotted module"):
        find("grue")


def test_a_broken_import_is_not_an_unknown_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy").mkdir()
    (tmp_path / "needy" / "model.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"family 'needy\.model' cannot be imported: .*a_package_that_nobody_has"):
        find("needy.model")
