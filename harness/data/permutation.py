"""A pseudo-random order of n things that is computed place by place, so n may be a billion and nothing is kept.

A Feistel network of a few rounds is a permutation of the numbers of 2k bits whatever its round function is (Luby and
Rackoff 1988); one of just n numbers comes by walking on while the number is not below n (Black and Rogaway 2002). The
round function is the finaliser of SplitMix64 (Steele, Lea and Flood 2014), which also gives the draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

ROUNDS = 6
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(words: Words) -> Words:
    """Each 64-bit word scrambled, one to one."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def drawn(*numbers: Any) -> Words:
    """A pseudo-random word that depends on all the `numbers` (integers, or arrays of equal shape) and no more."""
    word = np.zeros(1, np.uint64)
    for number in numbers:
        word = mixed(word * GOLDEN + np.asarray(number, np.uint64) + GOLDEN)
    return word


def permuted(places: Words, count: int, keys: Words) -> Words:
    """Where each of the `places` [B] below `count` goes in the permutation that its key in `keys` [B] chooses."""
    half = np.uint64(max(1, (max(count - 1, 1).bit_length() + 1) // 2))
    found = _network(places, half, keys)
    while (outside := found >= count).any():
        found[outside] = _network(found[outside], half, keys[outside])
    return found


def _network(numbers: Words, half: np.uint64, keys: Words) -> Words:
    """One pass of numbers of 2 × `half` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = numbers >> half, numbers & mask
    for turn in range(ROUNDS):
        left, right = right, left ^ (drawn(keys, turn, right) & mask)
    return (left << half) | right
