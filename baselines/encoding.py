"""Text and its tokens side by side: how many bytes each token stands for, so that losses compare per byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def bytes_of_tokens(characters: str, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes in UTF-8 of each token [n], given where in `characters` each of them ends [n].

    A character that several tokens share belongs to the one that completes it, and so does what no token shows, such
    as white space that the tokenizer drops before it. What comes after the last token belongs to none.
    """
    ends = np.maximum.accumulate(ends)
    code = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
    widths = 1 + (code >= 0x80).astype(np.int64) + (code >= 0x800) + (code >= 0x10000)
    completes = np.append(ends[1:] > ends[:-1], True)[: len(ends)]
    sizes = np.zeros_like(ends)
    sizes[completes] = np.diff(np.concatenate([[0], np.cumsum(widths)])[ends[completes]], prepend=0)
    return sizes
