"""How far a kernel may be from the exact result; emulation, self-check and benchmark hold it to the same numbers.

Tokens and operands are bf16, state and sums float32. Rounding the output alone costs 1.65e-3, rounding the operands of
every product 2e-3, and neither grows with the sequence (`README.md` has what was measured). A fault
costs 3e-2 and more.
"""

from typing import NamedTuple

from torch import Tensor


class Bounds(NamedTuple):
    """Relative errors in the Frobenius norm."""

    out: float
    """Output, for up to 512 tokens: later its part outside the residual dwindles against the residual."""
    normalised: float
    """Output without the residual."""
    state: float
    """W, and what W has learned."""
    gradient: float
    """Gradients of q, k, v, lr, gamma, beta and W0, and of tok where it is well conditioned."""


BOUNDS = {"linear": Bounds(5e-3, 4e-3, 3e-3, 1e-2), "mlp": Bounds(5e-3, 4e-3, 4e-3, 1e-2)}


def error(mine: Tensor, exact: Tensor) -> float:
    """Relative error in the Frobenius norm; infinite where something is not a number."""
    difference = (mine.double() - exact.double()).norm() / exact.double().norm()
    e = float(difference)
    return e if e == e else float("inf")
