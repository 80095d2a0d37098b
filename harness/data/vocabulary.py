"""From texts to token ids, as plain data that a process can be given: nothing here loads transformers.

Training documents become ids alone. A test document keeps its text and the bytes of each token too, because losses are
compared per byte of the text, whatever its tokens are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from baselines.encoding import bytes_of_tokens
from harness.data.config import BYTES
from harness.data.documents import Document
from harness.data.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.unsignedinteger[Any]]

BYTES_AT_ONCE = 1 << 20
"""Texts go through a tokenizer in batches of about so many bytes."""


class Tokens(NamedTuple):
    """Token ids of a document [n], and of how many bytes each is the text [n] (empty where that was not asked)."""

    ids: Ids
    sizes: NDArray[np.uint32]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as data: its `size`, the id that ends a text, and (None: bytes) its definition in JSON."""

    size: int = 256
    end: int | None = 0
    definition: str | None = None

    @classmethod
    def named(cls, name: str) -> Vocabulary:
        """The vocabulary of `data.tokenizer`."""
        return cls() if name == BYTES else cls.of(load_tokenizer(name))

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """The vocabulary of a fast tokenizer; ids run to the highest that it gives."""
        size = max(tokenizer.get_vocab().values()) + 1
        return cls(size, tokenizer.eos_token_id, tokenizer.backend_tokenizer.to_str())

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The narrowest unsigned integer that holds every id."""
        return np.dtype(np.min_scalar_type(self.size - 1))

    @property
    def seal(self) -> bytes:
        """What a hash over token ids begins with."""
        return b"bytes as tokens" if self.definition is None else b"tokens of %d" % self.size

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        assert self.definition is not None
        tokenizer = Tokenizer.from_str(self.definition)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode(self, documents: Sequence[Document], with_sizes: bool) -> Iterator[Tokens]:
        """The tokens of each document, nothing added; ValueError for a text that is not UTF-8, unless bytes are it."""
        nothing = np.zeros(0, np.uint32)
        if self.definition is None:
            yield from (Tokens(np.frombuffer(document.text, np.uint8), nothing) for document in documents)
            return
        for batch in _batches(documents):
            texts = [_decoded(document) for document in batch]
            encode = self._tokenizer.encode_batch if with_sizes else self._tokenizer.encode_batch_fast
            for text, found in zip(texts, encode(texts, add_special_tokens=False), strict=True):
                ids, sizes = np.array(found.ids, self.dtype), nothing
                if with_sizes:
                    ends = np.array([end for _, end in found.offsets], dtype=np.int64)
                    sizes = bytes_of_tokens(text, ends).astype(np.uint32)
                yield Tokens(ids, sizes)


def _batches(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    """Runs of documents of `BYTES_AT_ONCE` bytes, or of one that is longer."""
    if not documents:
        return
    before = np.cumsum([0] + [len(document.text) for document in documents[:-1]]) // BYTES_AT_ONCE
    borders = [0, *(np.flatnonzero(np.diff(before)) + 1).tolist(), len(documents)]
    yield from (documents[begin:end] for begin, end in pairwise(borders))


def _decoded(document: Document) -> str:
    try:
        return document.text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{document.name} is not UTF-8 ({error.reason}): leave it out, or read it with data.tokenizer=bytes"
        ) from None
