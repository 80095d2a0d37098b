"""The official JAX checkpoints: `streaming_train_state` files, read tensor by tensor without jax or pickle.

The format, as test-time-training/ttt-lm-jax @ 6f529b1 writes it (`ttt/infra/checkpoint.py`, inherited unchanged from
young-geng/EasyLM @ fe5b2c3; files made by that code at its pinned versions were read back bit for bit):

* The file is a plain sequence of msgpack records, no header and no index (`save_train_state_to_file`).
* A record is a two-element array: the key path (array of str) and a `bin` that holds the flax-serialised value
  (`flax_array.py`). Floating arrays are bfloat16 unless the run said otherwise (`float_dtype` defaults to "bf16").
* Key paths, in this order: ("step",), ("params", "params", "model", ...), then ("opt_state", "1", "0", "mu" or
  "nu", ...), two thirds of the file, which are seeked over and never read. Layers are not stacked: ("params",
  "params", "model", "h", "11", ...). The `streaming_params` files of runs without optimizer state start at "model".
* Parameters kept per head carry a slash inside one key: "ttt_norm/scale", "learnable_ttt_lr/kernel"
  (`ttt/models/ttt_layer.py`, `get_multi_head_params`). Joining a path with "/" gives one name for either spelling.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path

import torch

from ttt_impl.convert.errors import CheckpointError
from ttt_impl.convert.flax_array import Entry, read_headers, read_integer, read_tensor
from ttt_impl.convert.headers import HeaderReader

FIRST_BYTE = b"\x92"  # a two-element array
_KEPT = ("step", "params", "model", "lm_head")


@dataclass
class Index:
    """What a streaming checkpoint holds, known from its headers alone."""

    entries: dict[str, Entry] = field(default_factory=dict)
    step: int | None = None


def index_streaming_checkpoint(file: BufferedIOBase, size: int) -> Index:
    """List the parameters of a checkpoint of `size` bytes, reading headers only."""
    reader, index = HeaderReader(file, size), Index()
    while reader.position < size:
        if reader.expect("array") != 2:
            raise CheckpointError(f"foreign msgpack: no (key, value) pair before byte {reader.position}")
        path = [reader.text() for _ in range(reader.expect("array"))]
        length = reader.expect("bin")
        start = reader.skip(length)
        if path and path[0] in _KEPT:
            file.seek(start)
            _add(index, path, HeaderReader(file, start + length))
            file.seek(start + length)
    return index


def _add(index: Index, path: list[str], value: HeaderReader) -> None:
    """Note the step or one parameter."""
    if path == ["step"]:
        index.step = read_integer(value)
        return
    while path[0] == "params" and len(path) > 1:
        path = path[1:]
    name = "/".join(path)
    if name in index.entries:
        raise CheckpointError(f"parameter {name} occurs twice")
    index.entries[name] = read_headers(value, name)


def read_streaming_checkpoint(path: str | Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (JAX name, tensor) of every parameter, one at a time, e.g. "model/h/0/seq_modeling_block/wq/kernel".

    All headers are checked before the first tensor is read; optimizer state stays unread.
    """
    with Path(path).open("rb") as file:
        for entry in index_streaming_checkpoint(file, Path(path).stat().st_size).entries.values():
            yield entry.name, read_tensor(file, entry)
