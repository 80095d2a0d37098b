"""Documents in the tokens of a model, asked for by their bytes.

Conventions are about bytes, so that models with tokenizers of their own are asked about the same text as all others: a
context of 256 is 256 bytes of it, to within a token. A document is cut into tokens once, as a whole, and every question
is about a run of those tokens; nothing is cut anew at the border of a block or a window, where a tokenizer would have
to break its words. For a model that reads bytes, tokens and bytes are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baselines.interface import Encoded
from harness.measure.nll_file import Encode, Score


class Reading:
    """A document's tokens and the bytes [start, end) that each is; a token without bytes is a part of the next."""

    def __init__(self, name: str, encoded: Encoded) -> None:
        self.name, self.ids, self.sizes = name, encoded.ids, encoded.sizes
        self.ends = np.cumsum(encoded.sizes)
        self.starts = self.ends - encoded.sizes

    @classmethod
    def of(cls, name: str, ids: NDArray[np.uint8], encode: Encode) -> Reading:
        """The bytes `ids` [n] as a model reads them."""
        return cls(name, encode(ids.tobytes()))

    def since(self, byte: int, before: int) -> int:
        """The first token that begins at `byte` or later, but at least one before the token `before`."""
        return min(int(np.searchsorted(self.starts, byte)), before - 1)

    def covering(self, first: int, last: int) -> tuple[int, int]:
        """Tokens [a, b) with bytes in [first, last), and what is part of them; never the first of the document."""
        holds = int(np.searchsorted(self.ends, first, side="right"))
        if holds == len(self.ends):
            raise ValueError(f"{self.name}: the tokenizer shows no token from byte {first} on")
        begin = int(np.searchsorted(self.starts, self.starts[holds]))
        return max(begin, 1), int(np.searchsorted(self.starts, last))

    def shares(self, nll: NDArray[np.float32], begin: int, first: int, last: int) -> tuple[NDArray, NDArray]:
        """The part of the loss of tokens `begin` … that falls on the bytes [first, last), and those bytes, by token.

        A token's loss is spread evenly over its bytes; what has none goes with the token that it is a part of.
        """
        tokens = np.arange(begin, begin + len(nll))
        whole = np.flatnonzero(self.sizes[tokens])
        loss = np.add.reduceat(nll.astype(np.float64), np.r_[0, whole[:-1] + 1])
        tokens = tokens[whole]
        inside = np.minimum(self.ends[tokens], last) - np.maximum(self.starts[tokens], first)
        return loss * inside / self.sizes[tokens], inside


def score_runs(score: Score, runs: Sequence[tuple[NDArray[np.int64], int]]) -> list[NDArray[np.float32]]:
    """Nats [n] of the last n tokens of each run (token ids, n), all of them as rows of one batch.

    Shorter runs are filled up behind their end, which a causal model cannot see.
    """
    longest = max(len(ids) for ids, _ in runs)
    rows = np.stack([np.pad(ids, (0, longest - len(ids))) for ids, _ in runs])
    first = [len(ids) - targets for ids, targets in runs]
    nll = score(rows, longest - min(first))
    return [
        row[begin - min(first) : begin - min(first) + targets]
        for row, begin, (_, targets) in zip(nll, first, runs, strict=True)
    ]
