"""The gate: whether a model is what it claims to be, asked of every model before anything is measured on it.

Library code: the main job, the tests and a user with a model of their own call the same `run_gate`.
"""

from harness.gate.gate import run_gate

__all__ = ["run_gate"]
