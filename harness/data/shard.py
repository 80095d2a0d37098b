"""One shard of a token store: the documents of about 64 MiB of text as tokens, with their index, memory-mapped.

`00000.bin` holds arrays one after the other, `00000.json`, written last, says where each begins. By split there are

    ids        all tokens, document after document       1, 2 or 4 bytes a token
    ends       where each document ends among them       8 bytes a document
    names      all names in UTF-8                        of JSON lines some 15 bytes a document
    name_ends  where each name ends among them           4 bytes a document

and, unless bytes are the tokens, of test documents `sizes` (bytes of each token), `text` and `text_ends`. So the index
takes some 30 bytes a document: for the 211 million of the Pile 6 GB, beside 767 GB of tokens, none of it ever loaded
as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.sources import Split

ALIGNMENT = 8


@dataclass(frozen=True)
class Contents:
    """What a shard holds: `documents`, `tokens` and `bytes` by split, where its arrays lie in a file of `size` bytes.

    `part` counts the parts of the corpus, `last` says whether that part ends here; `found` documents there were, the
    longest of `longest` bytes, before too short ones were left out.
    """

    hash: str
    part: int
    last: bool
    found: int
    longest: int
    documents: dict[str, int]
    tokens: dict[str, int]
    bytes: dict[str, int]
    size: int = 0
    arrays: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # name: (dtype, first byte, elements)


class Shard:
    """A written shard; its arrays are read-only views into the file."""

    def __init__(self, stem: Path) -> None:
        self.contents = read_contents(stem)
        path = stem.with_suffix(".bin")
        self._bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)

    def array(self, split: Split, name: str) -> NDArray[Any] | None:
        """One array of a split, or None where the shard has no such."""
        found = self.contents.arrays.get(f"{split}.{name}")
        if found is None:
            return None
        dtype, first, count = found
        array: NDArray[Any] = np.frombuffer(self._bytes, dtype, count, first) if count else np.zeros(0, dtype)
        return array

    def piece(self, split: Split, name: str, ends: str, index: int) -> NDArray[Any] | None:
        """Of an array of all documents' values the part of one document."""
        array, borders = self.array(split, name), self.array(split, ends)
        if array is None or borders is None:
            return None
        return array[int(borders[index - 1]) if index else 0 : int(borders[index])]


def read_contents(stem: Path) -> Contents:
    """What the shard's JSON file says."""
    return Contents(**json.loads(stem.with_suffix(".json").read_text()))


def write_shard(stem: Path, contents: Contents, arrays: dict[str, NDArray[Any]]) -> Contents:
    """Write the arrays, then what is said of them, each under a temporary name until it is whole and flushed."""
    places: dict[str, tuple[str, int, int]] = {}
    pieces: list[bytes] = []
    first = 0
    for name, array in arrays.items():
        padding = -array.nbytes % ALIGNMENT
        places[name] = (array.dtype.str, first, len(array))
        pieces += [array.tobytes(), bytes(padding)]
        first += array.nbytes + padding
    whole = replace(contents, arrays=places, size=first)
    write_file(stem.with_suffix(".bin"), pieces)
    write_file(stem.with_suffix(".json"), [json.dumps(asdict(whole)).encode()])
    return whole


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file that is there as a whole, on the disk, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
