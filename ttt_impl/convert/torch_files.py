"""Community conversions: safetensors or PyTorch files, in one piece or in shards, with the official names.

PyTorch files are pickles, and a pickle is a program. They are read by `torch.load(weights_only=True)` alone, which
builds tensors and refuses everything else; zip-format files are mapped into memory rather than read.
"""

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ttt_impl.convert.errors import CheckpointError
from ttt_impl.convert.flax_array import DTYPES, Shape

ZIP = b"PK"
_SAFETENSORS_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}

Opened = tuple[dict[str, Shape], dict[str, torch.dtype], Callable[[str], torch.Tensor]]


def is_pickle(head: bytes) -> bool:
    """Tell a file of the old PyTorch format by the opcode that announces a pickle protocol."""
    return head[:1] == b"\x80"


def open_safetensors(files: list[Path]) -> Opened:
    """Open one or more safetensors files: shapes, dtypes and a reader by name."""
    owners: dict[str, Any] = {}
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in files:
        try:
            opened = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise CheckpointError(f"{path}: truncated or foreign safetensors file ({error})") from error
        names = list(opened.keys())
        _refuse_twice(names, owners, path)
        for name in names:
            part = opened.get_slice(name)
            if part.get_dtype() not in _SAFETENSORS_DTYPES:
                raise CheckpointError(f"{path}: {name} has dtype {part.get_dtype()}; valid dtypes: {', '.join(DTYPES)}")
            owners[name], shapes[name] = opened, tuple(part.get_shape())
            dtypes[name] = _SAFETENSORS_DTYPES[part.get_dtype()]
    return shapes, dtypes, lambda name: owners[name].get_tensor(name)


def open_torch(files: list[Path]) -> Opened:
    """Load one or more PyTorch state_dict files: shapes, dtypes and a reader by name."""
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        state = _load(path)
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise CheckpointError(f"{path}: not a state_dict (a flat mapping of names to tensors)")
        for name, tensor in state.items():
            if tensor.dtype not in DTYPES.values():
                raise CheckpointError(f"{path}: {name} has dtype {tensor.dtype}; valid dtypes: {', '.join(DTYPES)}")
        _refuse_twice(state, tensors, path)
        tensors |= state
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    return shapes, dtypes, lambda name: tensors[name].contiguous()


def _load(path: Path) -> Any:
    """Run `torch.load` so that nothing but tensors comes out, and its failures fit one line."""
    with path.open("rb") as file:
        zipped = file.read(2) == ZIP
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: damaged, or holds objects other than tensors, which are never loaded"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path}: truncated or damaged PyTorch file ({reason})") from error


def _refuse_twice(names: Iterable[str], seen: dict[str, Any], path: Path) -> None:
    """Raise where a parameter of `path` was already found in an earlier file."""
    for name in names:
        if name in seen:
            raise CheckpointError(f"{path}: parameter {name} occurs in two files")
