"""What can be converted: one view of JAX and PyTorch checkpoints, under the official PyTorch names.

A `Source` knows names, shapes and dtypes before any tensor is read, so that a wrong file is refused in a moment, and
then hands out one tensor at a time. Files are told apart by their first bytes, not by their names.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ttt_impl.convert.errors import CheckpointError
from ttt_impl.convert.flax_array import DTYPES, Shape, read_tensor
from ttt_impl.convert.names import permuted, torch_name
from ttt_impl.convert.streaming import FIRST_BYTE, index_streaming_checkpoint
from ttt_impl.convert.torch_files import ZIP, is_pickle, open_safetensors, open_torch

_FOLDER_PATTERNS = ("streaming_train_state*", "streaming_params*", "model*.safetensors", "pytorch_model*.bin")


@dataclass
class Source:
    """A checkpoint opened for reading: `read(name)` returns one tensor in the PyTorch layout."""

    kind: str
    files: list[Path]
    shapes: dict[str, Shape]
    dtypes: dict[str, torch.dtype]
    read: Callable[[str], torch.Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    handle: AbstractContextManager[Any] = field(default_factory=nullcontext)

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in self.files)


def open_source(path: Path) -> Source:
    """Open a JAX streaming file, a safetensors or PyTorch file, or a folder that holds one of them."""
    files = _find_files(path)
    with files[0].open("rb") as file:
        head = file.read(9)
    if head[:1] == FIRST_BYTE and head[8:9] != b"{":
        return _open_streaming(files)
    config = _read_config(files[0].with_name("config.json"))
    if head[8:9] == b"{":
        return Source("safetensors", files, *open_safetensors(files), config=config)
    if head[:2] == ZIP or is_pickle(head):
        return Source("torch", files, *open_torch(files), config=config)
    if head == b"version h":
        raise CheckpointError(
            f"{files[0]}: a Git LFS pointer, not the checkpoint; fetch the file itself (git lfs pull)"
        )
    raise CheckpointError(
        f"{files[0]}: not a checkpoint (starts with 0x{head[:4].hex()}); valid sources: a JAX streaming_train_state or "
        "streaming_params file, model.safetensors, pytorch_model.bin, or a folder with one of them"
    )


def _find_files(path: Path) -> list[Path]:
    """Return the file itself, or the checkpoint files of a folder: those of the first pattern that matches."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder")
    for pattern in _FOLDER_PATTERNS:
        files = sorted(path.glob(pattern))
        if len(files) > 1 and pattern.startswith("streaming"):
            raise CheckpointError(f"{path}: {len(files)} checkpoints, name one: {', '.join(f.name for f in files)}")
        if files:
            return files
    raise CheckpointError(f"{path}: no checkpoint in this folder; looked for {', '.join(_FOLDER_PATTERNS)}")


def _read_config(path: Path) -> dict[str, Any]:
    """Return config.json, or nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return config


def _open_streaming(files: list[Path]) -> Source:
    """Index a JAX checkpoint and rename its parameters."""
    path = files[0]
    file = path.open("rb")
    try:
        index = index_streaming_checkpoint(file, path.stat().st_size)
        places = {torch_name(name)[0]: (entry, torch_name(name)[1]) for name, entry in index.entries.items()}
        shapes = {name: permuted(entry.shape, axes, entry.name) for name, (entry, axes) in places.items()}
    except CheckpointError as error:
        file.close()
        raise CheckpointError(f"{path}: {error}") from error

    def read(name: str) -> torch.Tensor:
        entry, axes = places[name]
        tensor = read_tensor(file, entry)
        return tensor.permute(axes).contiguous() if axes else tensor

    dtypes = {name: DTYPES[entry.dtype] for name, (entry, _) in places.items()}
    return Source("jax-streaming", files, shapes, dtypes, read, step=index.step, handle=file)
