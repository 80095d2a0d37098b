"""Machines without a compiler, made by hand."""

from collections.abc import Iterator

import pytest

from ttt_impl.cpu import build


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Nothing is remembered of builds before the test, or of the test's."""
    for cached in (build.library, build._warn_once):
        cached.cache_clear()
    yield
    for cached in (build.library, build._warn_once):
        cached.cache_clear()
