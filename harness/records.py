"""What is kept of a measurement: typed, versioned rows with raw values, from which every report is drawn.

A run folder holds one `records.jsonl`, only ever appended to, one JSON object a line. Each row says what was
measured (`kind` and its `values`), of which model and seed, how it ended (`status`), under which conditions
(what a comparison must hold equal) and where it comes from (`provenance`). The NLL of every document and
position lies beside it as Parquet, named by the row. `results/README.md` describes the schema to readers.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "nan", "oom", "crashed", "unsupported", "skipped"]


@dataclass
class Values:
    """Base of the measured values; `kind` names the measurement in the file."""

    kind: ClassVar[str]


@dataclass
class Training(Values):
    """A training run: `loss` in nats per token of each logged interval, at `tokens_seen`."""

    kind: ClassVar[str] = "training"
    parameters: int
    tokens: int
    steps: int
    train_length: int
    tokens_seen: list[int]
    loss: list[float]
    wall_seconds: float
    cpu_seconds: float
    checkpoint: str
    learning_rate: float | None = None


@dataclass
class Tuning(Values):
    """The learning rates that a model was trained at, with its loss over the last tenth of training at each.

    The first is the rate that all models share; `chosen` names the model with the lowest loss (`mamba@0.01`, or `mamba`
    if that is the shared rate). A training that failed has an infinite loss.
    """

    kind: ClassVar[str] = "tuning"
    rates: list[float]
    losses: list[float]
    chosen: str


@dataclass
class Loaded(Values):
    """A model that was loaded instead of trained; `context_limit` in its tokens, None where there is none."""

    kind: ClassVar[str] = "loaded"
    parameters: int
    checkpoint: str
    context_limit: int | None = None


@dataclass
class Check:
    """One check of the gate: the `value` it found and the `bound` that it must not exceed."""

    name: str
    passed: bool
    value: float
    bound: float

    def __str__(self) -> str:
        """Such as 'batch = row by row (3.1e-03 > 1e-04)'."""
        return f"{self.name} ({self.value:.1e} {'≤' if self.passed else '>'} {self.bound:.0e})"


@dataclass
class Gate(Values):
    """Whether the model is what it claims to be: causal, equal step by step, normalised, finite."""

    kind: ClassVar[str] = "gate"
    checks: list[Check]

    @property
    def failed(self) -> list[Check]:
        """The checks that found more than their bound."""
        return [check for check in self.checks if not check.passed]


@dataclass
class PositionCurve(Values):
    """NLL by position over whole test documents (convention `position`), kept per document × position.

    `nll_file` is a Parquet file relative to the run folder, one row a document, with columns `document` (name),
    `nll` (list of float32, nats; element i is token i + 1 given tokens 0 … i), `target_bytes` (list of int, bytes of
    that token) and `first_bytes` (those of token 0). `max_length` and `train_length` are in bytes, for tokens
    by the mean of what was read: a model with a tokenizer of its own reads the same bytes in its tokens.
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
    of tokens with up to `context` tokens before it; lengths are in bytes; the seconds are those of all documents.
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


@dataclass
class TrainStep(Values):
    """Wall seconds of each timed training step (forward, backward, optimiser) of batch × length tokens."""

    kind: ClassVar[str] = "train_step"
    batch: int
    length: int
    seconds: list[float]
    peak_bytes: int | None
    flops: int


@dataclass
class Prefill(Values):
    """Wall seconds of each timed prefill of batch × length tokens from an empty state."""

    kind: ClassVar[str] = "prefill"
    batch: int
    length: int
    seconds: list[float]
    peak_bytes: int | None
    state_bytes: int
    flops: int


@dataclass
class Decode(Values):
    """Wall seconds of each timed single-token step after `context` tokens."""

    kind: ClassVar[str] = "decode"
    batch: int
    context: int
    seconds: list[float]
    state_bytes: int
    flops: int


@dataclass
class Benchmark(Values):
    """The same work by one of our models and by a rival, in turn: seconds of each side's timed turns, round by round.

    `cpu_seconds` and `wall_seconds` have the keys `ours`, `rival` and, where they were timed, `gemm`: the matrix
    products of our linear layers alone. A turn is `tokens` tokens. Where both sides are meant to compute the same,
    `logits_difference` is the largest between their logits and, in training, `gradient_difference` that between their
    gradients, relative to the largest gradient of each parameter.
    """

    kind: ClassVar[str] = "benchmark"
    work: str
    rival: str
    rival_path: str
    batch: int
    length: int
    tokens: int
    cpu_seconds: dict[str, list[float]]
    wall_seconds: dict[str, list[float]]
    logits_difference: float | None
    gradient_difference: float | None


@dataclass
class Finish(Values):
    """Closes a run of the whole job: what it cost, and its parts in wall seconds and in CPU seconds of all processes.

    The wall seconds begin with the job, the CPU seconds with its process (imports included).
    """

    kind: ClassVar[str] = "finish"
    wall_seconds: float
    cpu_seconds: float
    parts: dict[str, float]
    cpu_parts: dict[str, float] = field(default_factory=dict)


@dataclass
class Conditions:
    """What rows of one comparison must share; where a row differs the report marks it."""

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    compile: bool = False
    kernel_path: str = ""
    load_average: float | None = None


@dataclass
class Record:
    """One row of `records.jsonl`. `values` is None where the measurement did not come about: see `message`.

    `length` and `batch` are those of the timed shape, in tokens and rows, present also where there are no values; 0 for
    kinds without them.
    """

    kind: str
    model: str
    family: str
    seed: int
    status: Status = "ok"
    message: str = ""
    values: Values | None = None
    conditions: Conditions = field(default_factory=Conditions)
    provenance: dict[str, Any] = field(default_factory=dict)
    time: str = ""
    length: int = 0
    batch: int = 0
    schema_version: int = SCHEMA_VERSION


_KINDS: dict[str, type[Values]] = {cls.kind: cls for cls in Values.__subclasses__()}


def to_json(record: Record) -> str:
    """One line of JSON; NaN and infinities are kept as Python's json writes them."""
    return json.dumps(dataclasses.asdict(record), separators=(",", ":"))


def from_json(line: str) -> Record:
    """The record that `to_json` wrote; ValueError for a schema version this code does not know."""
    raw = json.loads(line)
    if raw["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"record of schema version {raw['schema_version']}; this version reads {SCHEMA_VERSION}")
    raw["conditions"] = Conditions(**raw["conditions"])
    if raw["values"] is not None:
        if raw["kind"] == Gate.kind:
            raw["values"]["checks"] = [Check(**check) for check in raw["values"]["checks"]]
        raw["values"] = _KINDS[raw["kind"]](**raw["values"])
    return Record(**raw)


class RecordStore:
    """The `records.jsonl` of one run folder: appended to by one process, read by any."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "records.jsonl"

    def append(self, record: Record) -> None:
        """Add one row and flush it to disk; a row torn by an earlier kill is closed first."""
        line = to_json(record) + "\n"
        with self.path.open("ab+") as file:
            if file.tell() and not self._ends_whole(file):
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def __iter__(self) -> Iterator[Record]:
        """All whole rows in the order they were written; a torn line is passed over."""
        if not self.path.exists():
            return
        with self.path.open() as file:
            for line in file:
                try:
                    json.loads(line)
                except json.JSONDecodeError:
                    continue
                yield from_json(line)

    @staticmethod
    def _ends_whole(file: Any) -> bool:
        file.seek(-1, os.SEEK_END)
        return bool(file.read(1) == b"\n")
