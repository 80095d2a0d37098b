"""The tokens of a corpus on disk: written once, memory-mapped by every process that trains or scores.

Bytes are the default tokens because they need no training, no download and no choice, and because perplexity per token
is then perplexity per byte, comparable over corpora; of any other tokenizer, the bytes of each token of the test
documents are kept. A store is a folder `tokens/<hash>/` of shards (`harness.data.shard`), with their counts in
`index.json` and the tokenizer, if there is one; `harness.data.corpus` makes it. The hash is that of the only shard, or
one over those of all shards. No index is loaded as a whole: a document is found by its number, in O(log shards).
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from harness.data.building import Advance, stem_of
from harness.data.config import BYTES, DataConfig
from harness.data.corpus import is_whole, obtain
from harness.data.shard import Shard
from harness.data.sources import SPLITS, Split
from harness.data.tokenizer import byte_tokenizer
from harness.data.vocabulary import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN_SHARDS = 256
"""Shards that a process keeps mapped, of however many there are."""


@dataclass(frozen=True)
class TokenDocument:
    """One document as token ids [n], a read-only view into the store's memory map.

    `sizes` [n] are the bytes of each token and `characters` those of the whole text: both None where bytes are the
    tokens, and in training documents.
    """

    name: str
    ids: Ids
    sizes: NDArray[np.uint32] | None = None
    characters: NDArray[np.uint8] | None = None

    def text(self, tokens: int | None = None) -> bytes:
        """The bytes of the first `tokens` tokens (None: of all)."""
        if self.sizes is None or self.characters is None:
            return self.ids[:tokens].tobytes()
        return self.characters[: None if tokens is None else int(self.sizes[:tokens].sum())].tobytes()

    def bytes_of(self, begin: int, end: int) -> NDArray[np.uint32]:
        """Bytes of each of the tokens `begin` … `end` - 1."""
        if self.sizes is None:
            return np.ones(min(end, len(self.ids)) - begin, np.uint32)
        return self.sizes[begin:end]


class TokenStore:
    """The documents of one corpus as tokens, by split; open one with `build` or `open`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: dict[str, Any] = json.loads((folder / "index.json").read_text())
        self.hash: str = self._index["hash"]
        self.vocab_size: int = self._index["vocab_size"]
        self.pack: bool = self._index["pack"]
        self.shard = lru_cache(OPEN_SHARDS)(lambda number: Shard(stem_of(folder, number)))

    @classmethod
    def build(cls, config: DataConfig, root: Path, advance: Advance = lambda done, total: None) -> TokenStore:
        """The store of the corpus that `config` describes, in `root/tokens/<hash>/`; written if it is not there."""
        return cls(obtain(config, Path(root), advance))

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """The store in `folder`, as an earlier `build` left it."""
        if not is_whole(Path(folder)):
            raise ValueError(f"{folder} is not a whole token store (index.json and the shards it names)")
        return cls(Path(folder))

    def documents(self, split: Split) -> Documents:
        """The documents of one split, in the order of the corpus."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}: must be one of {', '.join(SPLITS)}")
        return Documents(self, split)

    def counts(self, kind: str, split: Split) -> list[int]:
        """How many `documents`, `tokens` or `bytes` of a split each shard holds."""
        counts: list[int] = self._index[kind][split]
        return counts

    def total(self, kind: str, split: Split) -> int:
        """The sum of `counts`."""
        return sum(self.counts(kind, split))

    @property
    def reads_bytes(self) -> bool:
        """Whether each byte is a token."""
        return bool(self._index["tokenizer"] == BYTES)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, for what needs one beside a model: `generate`, lm-eval."""
        if self.reads_bytes:
            return byte_tokenizer()
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        return tokenizer


class Documents(Sequence[TokenDocument]):
    """Documents of one split, made when they are asked for; a slice is a view."""

    def __init__(self, store: TokenStore, split: Split, places: range | None = None) -> None:
        self._store, self._split = store, split
        self._before = [0, *accumulate(store.counts("documents", split))]
        self._places = range(self._before[-1]) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> TokenDocument: ...
    @overload
    def __getitem__(self, index: slice) -> Documents: ...
    def __getitem__(self, index: int | slice) -> TokenDocument | Documents:
        if isinstance(index, slice):
            return Documents(self._store, self._split, self._places[index])
        place = self._places[index]
        number = bisect.bisect_right(self._before, place) - 1
        shard, own = self._store.shard(number), place - self._before[number]
        name, ids, sizes, text = (
            shard.piece(self._split, *array, own)
            for array in (("names", "name_ends"), ("ids", "ends"), ("sizes", "ends"), ("text", "text_ends"))
        )
        assert name is not None
        assert ids is not None
        return TokenDocument(name.tobytes().decode("utf-8", "surrogateescape"), ids, sizes, text)

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document."""
        every = [np.diff(ends, prepend=ends.dtype.type(0)) for ends in self._ends()]
        return np.concatenate(every).astype(np.int64)[self._places.start : self._places.stop : self._places.step]

    def _ends(self) -> Iterator[NDArray[np.uint64]]:
        for number in range(len(self._before) - 1):
            ends = self._store.shard(number).array(self._split, "ends")
            assert ends is not None
            yield ends
