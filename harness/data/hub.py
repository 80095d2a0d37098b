"""Data sets of the Hugging Face hub, and local Parquet, JSON lines and Arrow, through the package `datasets`.

Rows are streamed, never downloaded as a whole. A part is what the data set itself is stored in, mostly a file, so an
interrupted job passes over the files that are done. A data set of the hub is known by its name alone: once tokenised,
it is opened without the network.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from harness.data.config import DataConfig
from harness.data.jsonl import encoded
from harness.data.sources import Item, Part, Split, stamp

FORMATS = {".parquet": "parquet", ".jsonl": "json", ".gz": "json", ".zst": "json", ".json": "json", ".arrow": "arrow"}
SAVED = ("state.json", "dataset_dict.json")
"""Files that say a folder was written by `save_to_disk`: one table, or one a split."""
FAILURES = (OSError, ValueError, KeyError, RuntimeError)
"""What `datasets` raises for what cannot be found or read."""


def hf(config: DataConfig) -> list[Part]:
    """The `split` of the data set, and its `test_split` if one is named."""
    if config.test_split is None:
        return _parts(config, config.split, None)
    return _parts(config, config.split, "train") + _parts(config, config.test_split, "test")


def _parts(config: DataConfig, split: str, held_out: Split | None) -> list[Part]:
    rows = _load(config, split)
    columns = rows.column_names
    if columns is not None and config.field not in columns:
        raise ValueError(f"data.field={config.field} is no column of {config.path}; its columns: {', '.join(columns)}")
    count = rows.num_shards
    known = "\n".join(stamp(path.name, path) for path in local_files(config))
    return [
        Part(
            partial(_items, rows.shard(num_shards=count, index=i), f"{split}-{i:05d}" if count > 1 else split, config),
            size=1, stamp=f"{split} {i} of {count}\n{known}", split=held_out,
        )
        for i in range(count)
    ]  # fmt: skip


def _items(rows: Any, name: str, config: DataConfig) -> Iterator[Item]:
    """The texts of some rows, named by the split, the part of it and the row."""
    for number, row in enumerate(_read(rows, config)):
        document = f"{name}:{number}"
        yield Item(document, encoded(row.get(config.field), row, config.field, document), 0)


def _read(rows: Any, config: DataConfig) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except FAILURES as error:
        raise _refused(config, error) from None


def _load(config: DataConfig, split: str) -> Any:
    """The split as an `IterableDataset`: rows of dictionaries, read as they are asked for."""
    try:
        import datasets
    except ImportError:
        raise ValueError("data.source=hf needs the package datasets: pip install 'ttt-bench[data]'") from None
    datasets.disable_progress_bars()
    files = [str(file) for file in local_files(config)]
    path = str(Path(str(config.path)).expanduser()) if files else str(config.path)
    try:
        if any((Path(path) / mark).exists() for mark in SAVED):
            return _saved(datasets.load_from_disk(path), config, split)
        if Path(path).is_dir() or not files:
            return datasets.load_dataset(path, config.name, split=split, streaming=True)
        _needs_no_test_split(config)
        form = FORMATS[Path(files[0]).suffix]
        return datasets.load_dataset(form, data_files={split: files}, split=split, streaming=True)
    except FAILURES as error:
        raise _refused(config, error) from None


def _saved(saved: Any, config: DataConfig, split: str) -> Any:
    """What `save_to_disk` wrote: one table, or a dictionary of splits."""
    if not isinstance(saved, dict):
        _needs_no_test_split(config)
    elif split not in saved:
        raise ValueError(f"Bad split: {split}. Available splits: {sorted(saved)}")
    table = saved[split] if isinstance(saved, dict) else saved
    return table.to_iterable_dataset(num_shards=len(table.cache_files))


def _needs_no_test_split(config: DataConfig) -> None:
    if config.test_split is not None:
        raise ValueError(f"data.test_split={config.test_split}: what is read has one split; leave it null")


def is_remote(config: DataConfig) -> bool:
    """Whether the data set lies on the hub."""
    return config.source == "hf" and not local_files(config)


def local_files(config: DataConfig) -> list[Path]:
    """The files that a local `path` (a folder, a file, a pattern) stands for; none for a name on the hub."""
    path = Path(str(config.path)).expanduser()
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    wrong = next((file for file in found if file.suffix not in FORMATS), None)
    if wrong is not None:
        raise ValueError(f"data.path is {config.path!r}: {wrong.name} must end in one of {', '.join(FORMATS)}")
    return found


def _refused(config: DataConfig, error: Exception) -> ValueError:
    """One line that names the data set, from whatever was raised."""
    text = str(error).strip().splitlines()
    return ValueError(f"data.path={config.path}: {text[0] if text else type(error).__name__}")
