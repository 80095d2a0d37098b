"""The small GRU of the tests of the instrument."""

from tests.harness.conftest import gru

__all__ = ["gru"]
