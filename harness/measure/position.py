"""The `position` convention: the loss at every position, in one pass over whole test documents.

The NLL of every document × position is kept, so that this one pass gives every context length, every bucket and paired
intervals over documents. Nothing is added to a document (no BOS, no EOS) and nothing scored but its own bytes; the
first token has no context and no score. A model with a tokenizer of its own reads the same bytes in its tokens, and
each token's bytes are kept beside its NLL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.data.tokens import TokenDocument
from harness.measure.nll_file import Advance, Encode, Score, finite, write_nll
from harness.records import PositionCurve

LONGEST_CHARACTER = 4
"""Bytes in UTF-8: fewer may be left at the end of a text that was cut at a byte, and it was read all the same."""


def position_curve(
    score: Score,
    encode: Encode,
    documents: Sequence[TokenDocument],
    max_length: int,
    train_length: int | None,
    path: Path,
    run_folder: Path,
    advance: Advance,
) -> PositionCurve:
    """Score the first `max_length` bytes of each document and keep all of it at `path` inside `run_folder`.

    A score that is not finite is an ArithmeticError.
    """
    names, nlls, sizes, done, read = [], [], [], 0, 0
    total = sum(min(document.size, max_length) for document in documents)
    for document in documents:
        text = document.text()[:max_length]
        encoded = encode(text)
        nlls.append(finite(score(encoded.ids[None], len(encoded.ids) - 1)[0], document.name, 0))
        sizes.append(encoded.sizes)
        names.append(document.name)
        done += len(text)
        whole = len(text) - int(encoded.sizes.sum()) < LONGEST_CHARACTER
        read += len(text) if whole else int(encoded.sizes.sum())
        advance(done, total)
    first = [int(size[0]) for size in sizes]
    write_nll(path, names, nlls, [size[1:] for size in sizes], first_bytes=first)
    return PositionCurve(
        nll_file=str(path.relative_to(run_folder)),
        documents=len(names),
        tokens=sum(len(nll) for nll in nlls),
        max_length=max_length,
        train_length=train_length,
        bytes=read,
    )
