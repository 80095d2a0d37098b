"""From documents to a shard: which of them count, their split, their tokens, and the hash of it all.

The hash covers names, tokens and splits in the order of the documents, each preceded by its length: the same hash
means the same tokens, in the same order, held out in the same way. It depends on neither the source nor the number of
processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data import documents as rules
from harness.data.config import DataConfig
from harness.data.documents import SMALLEST, Document
from harness.data.shard import Contents, write_shard
from harness.data.sources import SPLITS, Split
from harness.data.vocabulary import Tokens, Vocabulary


def tokenise(
    stem: Path,
    items: Iterable[tuple[str, bytes]],
    split: Split | None,
    place: tuple[int, bool],
    vocabulary: Vocabulary,
    config: DataConfig,
) -> Contents:
    """Write the shard `stem` of some items (name, raw) of a part; `place` is the part and whether it ends with them.

    `split` None splits the documents by their hash.
    """
    kept, found, longest = _long_enough(items, config)
    splits = [split or rules.split_of(document, config) for document in kept]
    columns = {home: Columns(vocabulary, home, config.pack) for home in SPLITS}
    encoded = {home: columns[home].encode(kept, splits) for home in SPLITS}
    digest = hashlib.sha256(vocabulary.seal)
    for document, home in zip(kept, splits, strict=True):
        tokens = next(encoded[home])
        if len(tokens.ids) >= SMALLEST:
            for piece in columns[home].add(document, tokens):
                digest.update(len(piece).to_bytes(8, "big"))
                digest.update(piece)
    contents = Contents(
        digest.hexdigest(), *place, found, longest,
        documents={home: len(columns[home].names) for home in SPLITS},
        tokens={home: sum(map(len, columns[home].ids)) for home in SPLITS},
        bytes={home: sum(columns[home].widths) for home in SPLITS},
    )  # fmt: skip
    return write_shard(stem, contents, dict(array for home in SPLITS for array in columns[home].arrays()))


def _long_enough(items: Iterable[tuple[str, bytes]], config: DataConfig) -> tuple[list[Document], int, int]:
    """The documents that are not too short; how many there were, and the bytes of the longest."""
    least = max(config.min_bytes, SMALLEST)
    kept, found, longest = [], 0, 0
    for name, raw in items:
        text = rules.text_of(raw, name, config)
        found, longest = found + 1, max(longest, len(text))
        if len(text) >= least:
            kept.append(Document(name, text))
    return kept, found, longest


class Columns:
    """The documents of one split of a shard, as they will lie in its file."""

    def __init__(self, vocabulary: Vocabulary, home: Split, pack: bool) -> None:
        self.vocabulary, self.home = vocabulary, home
        self.end = [vocabulary.end] if pack and home == "train" else []
        self.keeps_text = home == "test" and vocabulary.definition is not None
        self.names: list[bytes] = []
        self.ids: list[NDArray[Any]] = []
        self.sizes: list[NDArray[Any]] = []
        self.texts: list[bytes] = []
        self.widths: list[int] = []

    def encode(self, documents: Sequence[Document], splits: Sequence[Split]) -> Iterator[Tokens]:
        """The tokens of those `documents` that are of this split, in order."""
        own = [document for document, home in zip(documents, splits, strict=True) if home == self.home]
        for ids, sizes in self.vocabulary.encode(own, with_sizes=self.keeps_text):
            yield Tokens(np.append(ids, np.array(self.end, ids.dtype)) if self.end else ids, sizes)

    def add(self, document: Document, tokens: Tokens) -> list[bytes]:
        """Take in a document; what the hash covers of it."""
        self.names.append(document.name.encode("utf-8", "surrogateescape"))
        self.ids.append(tokens.ids)
        self.widths.append(len(document.text))
        if self.keeps_text:
            self.sizes.append(tokens.sizes)
            self.texts.append(document.text)
        pieces = [self.names[-1], tokens.ids.tobytes(), self.home.encode()]
        return [*pieces, document.text] if self.keeps_text else pieces

    def arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Each array under its name (see `harness.data.shard`)."""
        yield f"{self.home}.ids", np.concatenate([np.zeros(0, self.vocabulary.dtype), *self.ids])
        yield f"{self.home}.ends", _ends(self.ids, np.uint64)
        yield f"{self.home}.names", np.frombuffer(b"".join(self.names), np.uint8)
        yield f"{self.home}.name_ends", _ends(self.names, np.uint32)
        if self.keeps_text:
            yield f"{self.home}.sizes", np.concatenate([np.zeros(0, np.uint32), *self.sizes])
            yield f"{self.home}.text", np.frombuffer(b"".join(self.texts), np.uint8)
            yield f"{self.home}.text_ends", _ends(self.texts, np.uint64)


def _ends(pieces: Sequence[Any], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Where each of the pieces, laid one after the other, ends."""
    return np.cumsum([len(piece) for piece in pieces], dtype=dtype)
