"""What the documents of a config hold, as far as they can be had here at once, and what is assumed of the rest.

A small corpus is tokenised, as the run would, which then finds it there. A large one is left to `python -m
harness.data`, and the hub is not asked: sizes of files, the tokenizer's name and the config say what can be said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.config import RunConfig
from harness.data.batches import training_batches
from harness.data.config import BYTES, DataConfig
from harness.data.corpus import known
from harness.data.documents import parts_of
from harness.data.hub import is_remote, local_files
from harness.data.sources import Part
from harness.data.tokens import TokenStore
from harness.data.vocabulary import Vocabulary
from harness.plan.work import HeldOut
from harness.run import check_lengths, check_tokens

TOKENISED_HERE = 200 << 20
"""Bytes of files up to which a plan tokenises them itself."""
VOCABULARIES = {
    "NousResearch/Llama-2-7b-hf": 32_000,
    "meta-llama/Llama-2-7b-hf": 32_000,
    "EleutherAI/gpt-neox-20b": 50_277,
    "gpt2": 50_257,
    "openai-community/gpt2": 50_257,
}
"""Token ids of tokenizers by hub name, as their makers published them; no model here rounds them up."""
OTHERS = 50_257
"""Of a tokenizer that is neither here nor listed: as many as GPT-2's."""
BYTES_A_TOKEN = 3.5
"""Of text, where it cannot be counted: a round guess for English and some 40 thousand kinds of tokens."""

COMMAND = "python -m harness.data, with the same overrides"


@dataclass(frozen=True)
class Corpus:
    """Counts of a token store; in `problems` why there is none, or why the run would not take it."""

    vocab_size: int = Vocabulary().size
    train_documents: int = 0
    train_tokens: int = 0
    epoch_tokens: int = 0
    """Tokens that one epoch of training windows holds."""
    test_documents: int = 0
    test: HeldOut = field(default_factory=lambda: HeldOut([], []))
    """Those that are scored."""
    stored: int = 0
    """Bytes on disk."""
    problems: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    """What was not counted, each in a line."""


def corpus_of(config: RunConfig) -> Corpus:
    """The corpus as it is here, or what must be assumed of it."""
    absent = list(_on_the_hub(config.data))
    if absent:
        return _assumed(config, absent)
    try:
        folder = known(config.data, Path(config.output))
        files = 0 if folder else _file_bytes(config.data)
        if files > TOKENISED_HERE:
            return _assumed(config, [f"{files / 2**30:.1f} GiB of text not tokenised yet: {COMMAND}"])
        if folder is None and is_remote(config.data):
            return _assumed(config, [_not_here(config.data)])
        store = TokenStore(folder) if folder else TokenStore.build(config.data, Path(config.output))
    except ValueError as error:
        return _assumed(config, [str(error)])
    return _counted(config, store)


def cached(repository: str, *files: str) -> bool:
    """Whether the hub's cache on this machine holds any of these files of a repository."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def _on_the_hub(data: DataConfig) -> Iterator[str]:
    """What has to be downloaded before any token can be counted."""
    if data.tokenizer != BYTES and not _is_here(data.tokenizer):
        yield f"data.tokenizer={data.tokenizer} is not in the hub's cache here: it has to be downloaded"
        if is_remote(data):
            yield _not_here(data)


def _is_here(tokenizer: str) -> bool:
    local = tokenizer.endswith(".json") or Path(tokenizer).expanduser().exists()
    return local or cached(tokenizer, "tokenizer.json", "tokenizer_config.json")


def _not_here(data: DataConfig) -> str:
    return f"data.path={data.path} lies on the hub, its tokens not here: {COMMAND}"


def _file_bytes(data: DataConfig) -> int:
    return sum(_sizes(data, [] if data.source == "hf" else parts_of(data)))


def _sizes(data: DataConfig, parts: Sequence[Part]) -> Iterator[int]:
    """Bytes of the files that a corpus on this machine is read from."""
    yield from (file.stat().st_size for file in local_files(data)) if data.source == "hf" else (p.size for p in parts)


def _counted(config: RunConfig, store: TokenStore) -> Corpus:
    """What is in a store, and whether the run would take it."""
    epoch, problems, recipe = 0, [], config.train
    try:
        check_lengths(config, store)
        check_tokens(config, store)
        batches = training_batches(store, recipe.length, recipe.batch_size, config.seed)
        epoch = batches.windows_per_epoch * recipe.length
    except ValueError as error:
        problems = [str(error)]
    documents = store.documents("test")
    scored = documents[: config.measure.documents]
    lengths: list[int] = scored.lengths().tolist()
    sizes = lengths if store.reads_bytes else [document.size for document in scored]
    return Corpus(
        store.vocab_size, store.total("documents", "train"), store.total("tokens", "train"), epoch, len(documents),
        HeldOut(lengths, sizes, store.bytes_a_token("test")),
        sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file()), problems,
    )  # fmt: skip


def _assumed(config: RunConfig, problems: list[str]) -> Corpus:
    """A corpus that is not here: its vocabulary by name, tokens by the sizes of files, test documents by the config."""
    data, lines = config.data, []
    vocab_size, by_name = _vocab_size(data.tokenizer)
    if by_name:
        lines.append(f"a vocabulary of {vocab_size:,} tokens ({data.tokenizer})")
    a_token = 1.0 if data.tokenizer == BYTES else BYTES_A_TOKEN
    train_tokens = round(_train_bytes(data) / a_token)
    lines.append(
        f"{a_token:g} byte(s) of the files a token" if train_tokens else "nothing of the corpus' own tokens on disk"
    )
    count, length, test = config.measure.documents, config.max_length, HeldOut([], [])
    if count:
        tokens = length + config.measure.targets
        test = HeldOut([tokens] * count, [round(tokens * a_token)] * count, a_token)
        lines.append(f"{count:,} test documents (measure.documents), each as long as measure.max_length: the most")
    else:
        lines.append("no test documents (measure.documents names no number of them), so no scoring")
    stored = train_tokens * Vocabulary(vocab_size).dtype.itemsize
    return Corpus(vocab_size, 0, train_tokens, train_tokens, count or 0, test, stored, problems, lines)


def _vocab_size(tokenizer: str) -> tuple[int, bool]:
    """Of a tokenizer, and whether its name alone says so."""
    try:
        if tokenizer == BYTES or _is_here(tokenizer):
            return Vocabulary.named(tokenizer).size, False
    except ValueError:
        pass
    return VOCABULARIES.get(tokenizer, OTHERS), True


def _train_bytes(data: DataConfig) -> float:
    """Bytes of the files of a corpus on this machine that are trained on; 0 if it is not there."""
    try:
        parts = [] if data.source == "hf" else parts_of(data)
        size = sum(_sizes(data, [part for part in parts if part.split != "test"]))
    except ValueError:
        return 0
    return size * (1 if data.test_split or data.test_path else 1 - data.test_fraction)
