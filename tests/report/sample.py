"""A made-up run folder: four models and two n-gram floors, two seeds, one prefill that ran out of memory.

The numbers are drawn from a fixed generator, so a test can compute what a table must show.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.records import (
    Check,
    Conditions,
    Decode,
    Dynamic,
    Finish,
    FirstToken,
    FixedTarget,
    Gate,
    LmEval,
    PositionCurve,
    Prefill,
    Record,
    RecordStore,
    Status,
    TextRecall,
    Training,
    TrainStep,
    Values,
    Window,
)

MODELS = ("transformer", "mamba", "ttt_linear", "ttt_mlp")
FLOORS = ("3-gram", "4-gram")
TRAIN_LENGTH, MAX_LENGTH = 256, 2048
CONTEXTS = (16, 32, 64, 128, 256, 512, 1024, 2048)
PROVENANCE = {
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "versions": {"python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.6"},
    "hardware": {"processor": "A Fine CPU @ 2 GHz", "cores": 2, "memory_bytes": 25_000_000_000, "gpu": None},
    "config_hash": "c0ffee12",
    "data_hash": "5eed5eed",
}


def build(folder: Path, seeds: tuple[int, ...] = (0, 1), documents: int = 28) -> Path:
    """Write records.jsonl and the NLL files of all models and seeds into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    store = RecordStore(folder)
    for seed in seeds:
        for name in reversed(MODELS):  # as parallel workers may finish: in any order
            _add_quality(store, name, seed, documents)
        for order, name in enumerate(FLOORS):
            _add(store, name, seed, _scored(folder, name, seed, documents, 1.85 - 0.35 * order), family="ngram")
            _add(store, name, seed, _given(folder, name, seed, documents, 1.85 - 0.35 * order), family="ngram")
        for name in MODELS:
            _add_timing(store, name, seed)
        _add(store, "", seed, Finish(411.2, 702.9, {"train, gate, score": 312.4, "timing": 88.1}), family="")
    return folder


def write_nll(path: Path, nll: list[np.ndarray], size: int = 1) -> None:
    """An NLL file of documents doc00, doc01 … whose tokens have `size` bytes each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "document": pa.array([f"doc{i:02d}" for i in range(len(nll))], pa.string()),
        "nll": pa.array([row.astype(np.float32) for row in nll], pa.list_(pa.float32())),
        "target_bytes": pa.array([np.full(len(row), size, np.uint16) for row in nll], pa.list_(pa.uint16())),
    }
    pq.write_table(pa.table(columns), path)


def nll_of(name: str, seed: int, documents: int, base: float) -> list[np.ndarray]:
    """NLL of each document: a difficulty shared by all models, a model's own curve, noise by position."""
    index = (MODELS + FLOORS).index(name)
    shared = np.random.default_rng(1).normal(0, 0.12, size=documents)
    generator = np.random.default_rng([index, 0 if name in FLOORS else seed + 1])
    rows = []
    for i in range(documents):
        length = MAX_LENGTH - 1 if i % 4 else 700 + 10 * i
        context = np.arange(1, length + 1)
        gain = 0.35 if name in FLOORS else 1.1 * context**-0.35
        beyond = 0.25 * np.maximum(np.log2(context / TRAIN_LENGTH), 0) if name == "transformer" else 0.0
        rows.append(np.abs(base + shared[i] + gain + beyond + generator.gamma(1.0, 0.3, size=length) - 0.3))
    return rows


def _scored(folder: Path, name: str, seed: int, documents: int, base: float) -> PositionCurve:
    nll = nll_of(name, seed, documents, base)
    file = f"models/{name}-{seed}/nll.parquet"
    write_nll(folder / file, nll)
    length = None if name in FLOORS else TRAIN_LENGTH
    return PositionCurve(file, len(nll), sum(map(len, nll)), MAX_LENGTH, length)


def _given(folder: Path, name: str, seed: int, documents: int, base: float) -> FixedTarget:
    """Two blocks of targets a document: difficulty shared, a gain from context, less beyond the training length."""
    generator = np.random.default_rng([21, (MODELS + FLOORS).index(name), 0 if name in FLOORS else seed + 1])
    shared = np.random.default_rng(2).normal(0, 0.12, size=(documents, 2))
    rows: dict[str, list[object]] = {"document": [], "start": [], "context": [], "nll": [], "target_bytes": []}
    for context in CONTEXTS:
        gain = 0.0 if name in FLOORS else 1.1 * context**-0.35
        beyond = 0.3 * max(np.log2(context / TRAIN_LENGTH), 0) if name == "transformer" else 0.0
        for i in range(documents):
            for block in range(2):
                nll = base + shared[i, block] + gain + beyond + generator.gamma(1.0, 0.3, size=16)
                row = (f"doc{i:02d}", 3000 + 16 * block, context, nll.astype(np.float32), np.ones(16, np.uint16))
                for column, value in zip(rows.values(), row, strict=True):
                    column.append(value)
    file = f"models/{name}-{seed}/fixed_target.parquet"
    pq.write_table(pa.table(rows), folder / file)
    return FixedTarget(file, documents, 32 * documents, list(CONTEXTS), None if name in FLOORS else TRAIN_LENGTH)


def _adapted(folder: Path, name: str, seed: int, documents: int) -> Dynamic:
    """What dynamic evaluation gains: a tenth of a nat by the end of a document."""
    frozen = nll_of(name, seed, documents, 1.1)
    adapted = [nll - 0.1 * np.arange(len(nll)) / len(nll) for nll in frozen]
    file = f"models/{name}-{seed}/dynamic.parquet"
    columns = {
        "document": [f"doc{i:02d}" for i in range(documents)],
        "nll": [row.astype(np.float32) for row in adapted],
        "frozen_nll": [row.astype(np.float32) for row in frozen],
        "target_bytes": [np.ones(len(row), np.uint16) for row in frozen],
    }
    pq.write_table(pa.table(columns), folder / file)
    tokens = sum(map(len, frozen))
    return Dynamic(
        file, documents, tokens, MAX_LENGTH, TRAIN_LENGTH, "sgd", "all", 800_000, 64, 192, 0.03 * (1 + seed), 10.0, 45.0
    )


def _recalled(name: str, seed: int) -> TextRecall:
    """Keys within 600 tokens are found (by the transformer: within its training length), others mostly not."""
    generator = np.random.default_rng([23, MODELS.index(name), seed])
    reach = TRAIN_LENGTH if name == "transformer" else 600
    lengths, depths, repeats = [128, 256, 512, 1024, 2048], [0, 25, 50, 75, 100], 10
    found = TextRecall(lengths, depths, repeats, TRAIN_LENGTH)
    for task, answer in (("passkey", 5), ("repetition", 48)):
        distances = np.array([[round(n - (n - 90) * depth / 100) for depth in depths] for n in lengths])
        near = generator.random((*distances.shape, repeats)) < np.where(distances < reach, 0.95, 0.1)[..., None]
        without = 2.0 + generator.gamma(1.0, 0.1, (len(lengths), repeats))
        found.answer_tokens[task], found.distances[task] = answer, distances.tolist()
        found.nll_without[task] = without.tolist()
        found.nll[task] = np.where(near, 0.1, without[:, None] - generator.normal(0, 0.02, near.shape)).tolist()
        found.right[task] = np.where(near, answer, answer - 3).tolist()
    return found


def _add_quality(store: RecordStore, name: str, seed: int, documents: int) -> None:
    index, generator = MODELS.index(name), np.random.default_rng([7, seed])
    tokens = np.arange(4096, 409_601, 4096)
    loss = 1.25 + 0.05 * index + 4.2 * np.exp(-tokens / 40_000) + generator.normal(0, 0.06, len(tokens))
    _add(
        store,
        name,
        seed,
        Training(
            801_536 + 512 * index,
            409_600,
            400,
            TRAIN_LENGTH,
            tokens.tolist(),
            loss.tolist(),
            61.0,
            60.2,
            f"models/{name}/checkpoint",
        ),
    )
    checks = [
        Check("causal: future changed", True, 0.0, 0.0),
        Check("prefill + step = forward", True, 3.1e-6 * (index + 1) / (1 + seed), 1e-4),
        Check("probabilities sum to 1", True, 2.4e-7, 1e-5),
    ]
    _add(store, name, seed, Gate(checks))
    _add(store, name, seed, scored := _scored(store.folder, name, seed, documents, 1.1 + 0.04 * index))
    _add(store, name, seed, _given(store.folder, name, seed, documents, 1.1 + 0.04 * index))
    _add(store, name, seed, _adapted(store.folder, name, seed, documents))
    _add(store, name, seed, _recalled(name, seed))
    metrics = {"acc": 0.5 + 0.05 * index + 0.02 * seed, "acc_stderr": 0.03}
    _add(store, name, seed, LmEval({"continuation": metrics}, {"continuation": 200}, {"continuation": 0}))
    _add(store, name, seed, Window(scored.nll_file, documents, scored.tokens, TRAIN_LENGTH, 64, TRAIN_LENGTH))


def _add_timing(store: RecordStore, name: str, seed: int) -> None:
    index, generator = MODELS.index(name), np.random.default_rng([11, MODELS.index(name), seed])
    path = "native" if index < 2 else "compiled"

    def repeats(seconds: float, count: int) -> list[float]:
        return (seconds * (1 + generator.gamma(2.0, 0.02, size=count))).tolist()

    _add(store, name, seed, TrainStep(4, 256, repeats(0.1 + 0.05 * index, 5), 380_000_000, 10**9), 256, path)
    for length in (256, 512, 1024, 2048, 4096):
        if name == "transformer" and length == 4096:
            _add(store, name, seed, None, length, path, status="oom", message="DefaultCPUAllocator: not enough memory")
            continue
        seconds = (2e-5 + 8e-9 * length) * length if name == "transformer" else (3e-5 + 1e-5 * index) * length
        state = 2 * 4 * 4 * 128 * length if name == "transformer" else 40_960 * (index + 1)
        _add(
            store,
            name,
            seed,
            Prefill(1, length, repeats(seconds, 5), 300_000_000 + 4000 * length * (1 + index), state, 10**8),
            length,
            path,
        )
        answer = FirstToken(1, length, repeats(seconds + 0.002, 5), 10**8, turns=5, drift=1.01, trend_p=0.8)
        _add(store, name, seed, answer, length, path)
    for batch, context in ((1, 256), (1, 1024), (1, 2048), (8, 1024), (8, 2048)):
        latency = (0.0021 + (7e-7 * context if name == "transformer" else 5e-4 * index)) * (0.7 + 0.3 * batch)
        state = batch * (2 * 4 * 4 * 128 * context if name == "transformer" else 40_960 * (index + 1))
        timed = Decode(batch, context, repeats(latency, 64), state, 10**6 * batch, turns=4, drift=1.02, trend_p=0.5)
        if name == "mamba" and batch == 8 and context == 2048:
            timed.drift, timed.trend_p = 1.234, 0.001
        _add(store, name, seed, timed, context, path)


def _add(
    store: RecordStore,
    name: str,
    seed: int,
    values: Values | None,
    length: int = 0,
    kernel_path: str = "",
    family: str | None = None,
    status: Status = "ok",
    message: str = "",
    kind: str = "prefill",
) -> None:
    store.append(
        Record(
            values.kind if values else kind, name, name if family is None else family, seed, status, message, values,
            Conditions(kernel_path=kernel_path, load_average=1.1 + 0.1 * seed + 0.05 * len(name) if length else None),
            PROVENANCE | {"seed": seed}, f"2026-01-0{1 + seed}T10:00:00+00:00", length,
        )
    )  # fmt: skip
