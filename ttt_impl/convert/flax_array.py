"""One flax-serialised array inside a file: where its elements lie, and how they become a tensor.

`flax.serialization.to_bytes(array)` (flax 0.7.0, `flax/serialization.py`) gives one of:

* an ext of type 1 whose data is the msgpack array [shape, dtype name, elements in C order, little-endian]
  (`_ndarray_to_bytes`); ext type 3 is the same for a NumPy scalar (`_MsgpackExtType`);
* for an array above 2**30 bytes, a map {"__msgpack_chunked_array__": True, "shape": {"0": n, ...},
  "chunks": {"0": ext, ...}} whose chunks are flat pieces in order (`_chunk`);
* for a Python integer, the integer.

bfloat16 has no NumPy type of its own; it is named "bfloat16" and is the bit pattern that PyTorch uses too.
"""

import math
from dataclasses import dataclass
from io import BufferedIOBase

import torch

from ttt_impl.convert.errors import CheckpointError
from ttt_impl.convert.headers import HeaderReader

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
_ARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"

Shape = tuple[int, ...]
Segment = tuple[int, int]


@dataclass(frozen=True)
class Entry:
    """Where one parameter lies: `segments` are (offset, bytes) in the order of the elements."""

    name: str
    dtype: str
    shape: Shape
    segments: tuple[Segment, ...]


def _ext(reader: HeaderReader) -> tuple[Shape, str, Segment]:
    """Read the headers inside an ext, whose own header has been read: shape, dtype name, segment."""
    code = reader.take(1)[0]
    if code not in (_ARRAY, _SCALAR) or reader.expect("array") != 3:
        raise CheckpointError(f"foreign msgpack: the ext of type {code} before byte {reader.position} is no flax array")
    shape = tuple(reader.expect("int") for _ in range(reader.expect("array")))
    dtype = reader.text()
    size = reader.expect("bin")
    return shape, dtype, (reader.skip(size), size)


def _chunks(reader: HeaderReader, pairs: int) -> tuple[Shape, str, tuple[Segment, ...]]:
    """Read the headers inside a chunked array, whose map header has been read: shape, dtype name, segments."""
    shape: Shape = ()
    dtypes: set[str] = set()
    segments: list[Segment] = []
    for _ in range(pairs):
        key = reader.text()
        if key == _CHUNKED:
            reader.expect("true")
        elif key == "shape":
            shape = tuple(reader.expect("int") for _ in range(reader.expect("map")) if reader.text())
        elif key == "chunks":
            for _ in range(reader.expect("map")):
                reader.text()
                reader.expect("ext")
                _, dtype, segment = _ext(reader)
                dtypes.add(dtype)
                segments.append(segment)
        else:
            raise CheckpointError(f"foreign msgpack: key {key!r} before byte {reader.position} in a chunked array")
    return shape, "/".join(sorted(dtypes)), tuple(segments)


def read_headers(reader: HeaderReader, name: str) -> Entry:
    """Read the headers of one parameter, leaving its elements unread."""
    kind, length = reader.header()
    if kind == "ext":
        shape, dtype, segment = _ext(reader)
        segments: tuple[Segment, ...] = (segment,)
    elif kind == "map":
        shape, dtype, segments = _chunks(reader, length)
    else:
        raise CheckpointError(f"parameter {name} is a msgpack {kind}, not an array")
    if dtype not in DTYPES:
        raise CheckpointError(f"parameter {name} has dtype {dtype!r}; valid dtypes: {', '.join(DTYPES)}")
    needed, found = math.prod(shape) * DTYPES[dtype].itemsize, sum(size for _, size in segments)
    if needed != found:
        raise CheckpointError(f"parameter {name} of shape {list(shape)} needs {needed} bytes, the file has {found}")
    return Entry(name, dtype, shape, segments)


def read_integer(reader: HeaderReader) -> int:
    """Read a Python integer or a 0-d integer array."""
    kind, value = reader.header()
    if kind == "int":
        return value
    if kind != "ext":
        raise CheckpointError(f"foreign msgpack: {kind} before byte {reader.position} where a checkpoint has a number")
    _, _, (start, size) = _ext(reader)
    reader.file.seek(start)
    return int.from_bytes(reader.take(size), "little")


def read_tensor(file: BufferedIOBase, entry: Entry) -> torch.Tensor:
    """Read one parameter straight into a tensor's memory, in the dtype and layout of the file."""
    tensor = torch.empty(math.prod(entry.shape), dtype=DTYPES[entry.dtype])
    target = tensor.view(torch.uint8).numpy().data
    for start, size in entry.segments:
        file.seek(start)
        if file.readinto(target[:size]) != size:
            raise CheckpointError(f"truncated: parameter {entry.name} ends early")
        target = target[size:]
    return tensor.reshape(entry.shape)
