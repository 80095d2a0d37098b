"""What the documents of a config hold, as far as they can be had here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harness.config import RunConfig
from harness.data.batches import training_batches
from harness.data.tokens import TokenStore
from harness.data.vocabulary import Vocabulary
from harness.run import check_lengths


@dataclass(frozen=True)
class Corpus:
    """Counts of a token store; in `problem` why there is none, or why the run would not take it."""

    vocab_size: int = Vocabulary().size
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
    epoch, problem = 0, ""
    try:
        check_lengths(config, store)
        recipe = config.train
        batches = training_batches(store, recipe.length, recipe.batch_size, config.seed)
        epoch = batches.windows_per_epoch * recipe.length
    except ValueError as error:
        problem = str(error)
    return Corpus(
        store.vocab_size,
        store.total("documents", "train"),
        store.total("tokens", "train"),
        epoch,
        store.documents("test").lengths().tolist(),
        sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file()),
        problem,
    )
