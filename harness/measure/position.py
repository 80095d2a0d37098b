"""The `position` convention: the loss at every position, in one pass over whole test documents.

The NLL of every document × position is kept, so that this one pass gives every context length, every bucket and paired
intervals over documents. Nothing is added to a document (no BOS, no EOS) and nothing scored but its own text; the
first token has no context and no score. Each token's bytes are kept beside its NLL, and lengths are recorded in bytes
(of tokens, by the mean of what was read): a model with a tokenizer of its own reads the same text in its tokens.
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
    """Score the first `max_length` tokens of each document and keep all of it at `path` inside `run_folder`.

    A score that is not finite is an ArithmeticError.
    """
    names, nlls, sizes, done, read, text_bytes = [], [], [], 0, 0, 0
    total = sum(min(len(document.ids), max_length) for document in documents)
    for document in documents:
        text = document.text(max_length)
        encoded = encode(document, max_length)
        nlls.append(finite(score(encoded.ids[None], len(encoded.ids) - 1)[0], document.name, 0))
        sizes.append(encoded.sizes)
        names.append(document.name)
        done += min(len(document.ids), max_length)
        text_bytes += len(text)
        whole = len(text) - int(encoded.sizes.sum()) < LONGEST_CHARACTER
        read += len(text) if whole else int(encoded.sizes.sum())
        advance(done, total)
    first = [int(size[0]) for size in sizes]
    per_token = text_bytes / total
    write_nll(path, names, nlls, [size[1:] for size in sizes], first_bytes=first)
    return PositionCurve(
        nll_file=str(path.relative_to(run_folder)),
        documents=len(names),
        tokens=sum(len(nll) for nll in nlls),
        max_length=round(max_length * per_token),
        train_length=None if train_length is None else round(train_length * per_token),
        bytes=read,
    )
