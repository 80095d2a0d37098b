"""The small models of the tests of the instrument."""

from tests.harness.conftest import gru, ttt

__all__ = ["gru", "ttt"]
