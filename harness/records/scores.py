"""How well a model predicts and recalls, under which convention, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from harness.records.values import Values


@dataclass
class PositionCurve(Values):
    """NLL by position over whole test documents (convention `position`), kept per document × position.

    `nll_file` is a Parquet file relative to the run folder, one row a document, with columns `document` (name),
    `nll` (list of float32, nats; element i is token i + 1 given tokens 0 … i), `target_bytes` (list of int, bytes of
    that token) and `first_bytes` (those of token 0). `max_length` counts bytes: a model with a tokenizer of its own
    reads the same bytes in its tokens.
    """

    kind: ClassVar[str] = "position"
    nll_file: str
    documents: int
    tokens: int
    max_length: int
    train_length: int | None
    convention: str = "position"
    bytes: int = 0
    """Bytes of the documents that were read, 0 in rows of byte-level models from before there were others."""


@dataclass
class FixedTarget(Values):
    """NLL of the same target tokens given ever more context (convention `fixed_target`).

    `nll_file` is a Parquet file, one row a document, block of targets and context, with columns `document`, `start`
    (position of the block's first token in the document), `context` (tokens before it that the model was given), `nll`
    and `target_bytes` (lists, an element a target token). Token j of a block so has `context` + j tokens before it.
    """

    kind: ClassVar[str] = "fixed_target"
    nll_file: str
    documents: int
    targets: int
    contexts: list[int]
    train_length: int | None
    convention: str = "fixed_target"


@dataclass
class Window(Values):
    """NLL of every token but the first, given what a window of `window` tokens moved on by `stride` holds before it.

    With `stride` = `window` windows do not overlap. `nll_file` is written as that of `PositionCurve`.
    """

    kind: ClassVar[str] = "window"
    nll_file: str
    documents: int
    tokens: int
    window: int
    stride: int
    train_length: int | None
    convention: str = "window"


@dataclass
class Dynamic(Values):
    """Dynamic evaluation: NLL while the model adapts to each document, beside that of the same reading frozen.

    `nll_file` is written as that of `PositionCurve`, with a column `frozen_nll` more. Both readings saw each `segment`
    of tokens with up to `context` tokens before it; the seconds are those of all documents.
    """

    kind: ClassVar[str] = "dynamic"
    nll_file: str
    documents: int
    tokens: int
    max_length: int
    train_length: int | None
    method: str
    parameters: str
    adapted_parameters: int
    segment: int
    context: int
    learning_rate: float
    frozen_seconds: float
    adapted_seconds: float


@dataclass
class LmEval(Values):
    """What lm-eval found: by task its metrics (with `_stderr`), scored samples, and shown examples."""

    kind: ClassVar[str] = "lm_eval"
    results: dict[str, dict[str, float]]
    samples: dict[str, int]
    fewshot: dict[str, int]


@dataclass
class TextRecall(Values):
    """Zero-shot recall by task: what a model made of a key in its context, and of the same context without it.

    `nll` (nats per answer token) and `right` (answer tokens that were the likeliest) are lengths × depths × repeats,
    `nll_without` the key lengths × repeats. `distances` (lengths × depths) are tokens from the answer in the key to
    where it is asked for, `depths` percent. An answer is right if all its `answer_tokens` are.
    """

    kind: ClassVar[str] = "text_recall"
    lengths: list[int]
    depths: list[int]
    repeats: int
    train_length: int | None
    answer_tokens: dict[str, int] = field(default_factory=dict)
    distances: dict[str, list[list[int]]] = field(default_factory=dict)
    nll: dict[str, list[list[list[float]]]] = field(default_factory=dict)
    nll_without: dict[str, list[list[float]]] = field(default_factory=dict)
    right: dict[str, list[list[list[int]]]] = field(default_factory=dict)


@dataclass
class Diagnostics(Values):
    """What a model reports of itself while it reads: named curves over position, empty where a family has none.

    `curves` maps "group: series" to layers × points, each point the mean of `stride` tokens and of `documents`.
    """

    kind: ClassVar[str] = "diagnostics"
    documents: int
    stride: int
    curves: dict[str, list[list[float]]]


@dataclass
class Recall(Values):
    """A small model on a made task of recall: `accuracy` of its answers at each of `sizes`, over `test_rows` sequences.

    `state_bytes` is what it carries after the longest sequence, `chance` the accuracy of a guess.
    """

    kind: ClassVar[str] = "recall"
    task: str
    sizes: list[int]
    accuracy: list[float]
    chance: float
    test_rows: int
    steps: int
    parameters: int
    state_bytes: int
    cpu_seconds: float
