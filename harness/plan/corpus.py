"""What the documents of a config hold, as far as they can be had here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harness.config import RunConfig
from harness.data.batches import Batches
from harness.data.tokens import VOCAB_SIZE, TokenStore
from harness.run import check_lengths


@dataclass(frozen=True)
class Corpus:
    """Counts of a token store; in `problem` why there is none, or why the run would not take it."""

    vocab_size: int = VOCAB_SIZE
    train_documents: int = 0
    train_tokens: int = 0
    epoch_tokens: int = 0
    """Tokens that one epoch of training windows holds."""
    test_lengths: list[int] = field(default_factory=list)
    """Tokens of each test document."""
    stored: int = 0
    """Bytes on disk."""
    problem: str = ""


def corpus_of(config: RunConfig) -> Corpus:
    """Read the corpus and cut it into tokens, as the run would, which then finds them there."""
    try:
        store = TokenStore.build(config.data, Path(config.output))
    except ValueError as error:
        return Corpus(problem=str(error))
    train, test = store.documents("train"), store.documents("test")
    epoch, problem = 0, ""
    try:
        check_lengths(config, store)
        windows = Batches(train, config.train.length, config.train.batch_size, config.seed).windows_per_epoch
        epoch = windows * config.train.length
    except ValueError as error:
        problem = str(error)
    return Corpus(
        store.vocab_size,
        len(train),
        sum(len(document.ids) for document in train),
        epoch,
        [len(document.ids) for document in test],
        sum(path.stat().st_size for path in store.folder.iterdir()),
        problem,
    )
