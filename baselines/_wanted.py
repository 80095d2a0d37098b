"""A prefill wants the logits of its last tokens: what follows the mixing in the last block is spared all others.

Where the blocks are called by transformers, how many are wanted lies in an attribute of a module there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from ttt_impl.cpu.linear import Linear


class LastRows(Linear):
    """A projection of the last `wanted` tokens alone (0: all)."""

    wanted: int = 0

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, in] -> [B, wanted or L, out]."""
        return super().forward(x[:, -self.wanted :])


@contextlib.contextmanager
def wanting(module: nn.Module, tokens: int) -> Iterator[None]:
    """Within, `module.wanted` is `tokens`."""
    module.wanted = tokens  # type: ignore[assignment]
    try:
        yield
    finally:
        module.wanted = 0  # type: ignore[assignment]
