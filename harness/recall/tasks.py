"""Made tasks of recall: sequences whose answers stand in them, and nowhere else.

Nothing in the weights can answer them, so accuracy says what the state still holds. Each task has a size n, what must
be held at once, and vocabulary of bytes. Batches are a pure function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VOCAB_SIZE = 256
KEYS = 128
"""Of the tokens of associative recall the first half are keys, the others values."""
SYMBOLS = 16
"""Tokens that are copied in selective copying."""
IGNORED = -1

Ints = NDArray[np.int64]


class Batch(NamedTuple):
    """Token ids [B, L], and at each position the token to be predicted there, or IGNORED [B, L]."""

    ids: Ints
    targets: Ints


def mqar(random: np.random.Generator, rows: int, n: int) -> Batch:
    """Multi-query associative recall (Arora et al., arXiv 2312.04927, section 3): n pairs of key and value, then all
    keys in another order; at each of them its value is to be predicted. 3 n tokens."""
    keys = np.argsort(random.random((rows, KEYS)), axis=1)[:, :n]
    values = random.integers(KEYS, VOCAB_SIZE, (rows, n))
    order = np.argsort(random.random((rows, n)), axis=1)
    pairs = np.stack([keys, values], axis=2).reshape(rows, 2 * n)
    asked, answers = (np.take_along_axis(part, order, axis=1) for part in (keys, values))
    return Batch(np.hstack([pairs, asked]), np.hstack([np.full_like(pairs, IGNORED), answers]))


def induction(random: np.random.Generator, rows: int, n: int) -> Batch:
    """n different tokens and then the same again: from the second one on each is known (Olsson et al., arXiv
    2209.11895). 2 n tokens."""
    text = np.argsort(random.random((rows, VOCAB_SIZE)), axis=1)[:, :n]
    targets = np.full((rows, 2 * n), IGNORED)
    targets[:, n:-1] = text[:, 1:]
    return Batch(np.hstack([text, text]), targets)


def selective_copying(random: np.random.Generator, rows: int, n: int) -> Batch:
    """n symbols, scattered in 3 n places of noise, are to be said in order afterwards (Gu & Dao, arXiv 2312.00752,
    section 3.1). 4 n tokens, the noise token 0, the question 1."""
    symbols = random.integers(2, 2 + SYMBOLS, (rows, n))
    places = np.sort(np.argsort(random.random((rows, 3 * n)), axis=1)[:, :n], axis=1)
    text = np.zeros((rows, 3 * n), dtype=np.int64)
    np.put_along_axis(text, places, symbols, axis=1)
    return Batch(np.hstack([text, np.ones_like(symbols)]), np.hstack([np.full_like(text, IGNORED), symbols]))


class Task(NamedTuple):
    """A generator, the tokens of a sequence per unit of n, and the accuracy of a guess that knows the vocabulary."""

    make: Callable[[np.random.Generator, int, int], Batch]
    length: int
    chance: float
    unit: str
    largest: int


TASKS = {
    "mqar": Task(mqar, 3, 1 / (VOCAB_SIZE - KEYS), "pairs of key and value", KEYS),
    "induction": Task(induction, 2, 1 / VOCAB_SIZE, "tokens before they repeat", VOCAB_SIZE),
    "selective_copying": Task(selective_copying, 4, 1 / SYMBOLS, "symbols to copy", 2**16),
}


def batch(task: str, rows: int, n: int, *seed: int) -> Batch:
    """`rows` sequences of size n, always the same for the same `seed` numbers."""
    return TASKS[task].make(np.random.default_rng(seed), rows, n)
