"""A writer of the JAX release's `streaming_train_state` files, made of the msgpack library and nothing else.

It shares no code with the reader. Where the reader needs a file too large for a disk, `hole` writes the headers of an
array and leaves its elements as a hole in a sparse file.
"""

from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import torch

KeyPath = tuple[str, ...]


def array(value: torch.Tensor, code: int = 1) -> msgpack.ExtType:
    """One tensor as flax packs an ndarray (ext 1) or a NumPy scalar (ext 3)."""
    name = str(value.dtype).removeprefix("torch.")
    data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return msgpack.ExtType(code, msgpack.packb((tuple(value.shape), name, data), use_bin_type=True))


def chunked(value: torch.Tensor, elements: int) -> dict[str, object]:
    """One tensor as flax packs arrays above its chunk size."""
    pieces = value.reshape(-1).split(elements)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(axis): size for axis, size in enumerate(value.shape)},
        "chunks": {str(number): array(piece) for number, piece in enumerate(pieces)},
    }


def record(path: KeyPath, value: object) -> bytes:
    """One record of the stream: the key path and the value, packed twice."""
    return msgpack.packb((path, msgpack.packb(value, strict_types=True)))


def hole(path: KeyPath, shape: tuple[int, ...], dtype: str = "bfloat16", itemsize: int = 2) -> tuple[bytes, int]:
    """The headers of a record with 32-bit lengths, and how many bytes of elements follow."""
    size = int(np.prod(shape, dtype=np.int64)) * itemsize
    inner = b"\x93" + msgpack.packb(shape) + msgpack.packb(dtype) + b"\xc6" + size.to_bytes(4, "big")
    ext = b"\xc9" + (len(inner) + size).to_bytes(4, "big") + b"\x01" + inner
    return b"\x92" + msgpack.packb(path) + b"\xc6" + (len(ext) + size).to_bytes(4, "big") + ext, size


def train_state(params: dict[KeyPath, torch.Tensor], step: int = 4800) -> Iterator[bytes]:
    """All records of a train state in the order of the release: step, params, then Adam's count, mu and nu."""
    yield record(("step",), array(torch.tensor(step, dtype=torch.int32)))
    for path, value in params.items():
        yield record(("params", "params", *path), array(value))
    yield record(("opt_state", "1", "0", "count"), array(torch.tensor(step, dtype=torch.int32)))
    for moment in ("mu", "nu"):
        for path, value in params.items():
            yield record(("opt_state", "1", "0", moment, "params", *path), array(torch.full_like(value, float("nan"))))
    yield record(("opt_state", "1", "2", "count"), array(torch.tensor(step, dtype=torch.int32)))


def write(target: Path, params: dict[KeyPath, torch.Tensor], step: int = 4800) -> Path:
    """Write a whole train state."""
    target.write_bytes(b"".join(train_state(params, step)))
    return target


def write_holes(target: Path, shapes: dict[KeyPath, tuple[int, ...]]) -> Path:
    """Write a file whose records all end in holes: right in every header, empty in every element."""
    with target.open("wb") as file:
        for path, shape in shapes.items():
            headers, size = hole(path, shape)
            file.write(headers)
            file.seek(size, 1)
        file.truncate()
    return target


def model_shapes(
    learner: str,
    *,
    vocab: int,
    width: int,
    heads: int,
    inter: int,
    layers: int,
    mini_batch: int = 16,
    mamba: bool = True,
    tied: bool = True,
) -> dict[KeyPath, tuple[int, ...]]:
    """Names and shapes of a model of the JAX release (its `ttt/models/model.py` and `ttt_layer.py`)."""
    head = width // heads
    block: dict[str, tuple[int, ...]] = {
        "learnable_token_idx": (mini_batch,),
        "learnable_ttt_lr/bias": (heads, 1),
        "learnable_ttt_lr/kernel": (heads, width, 1),
        "post_norm.bias": (width,),
        "post_norm.scale": (width,),
        "ttt_norm/bias": (heads, head),
        "ttt_norm/scale": (heads, head),
        "wq.kernel": (width, width),
        "wv.kernel": (width, width),
        "wo.kernel": (width, width),
    }
    if learner == "linear":
        block |= {"ttt_dense_0": (heads, head, head), "ttt_bias_0": (heads, 1, head)}
    else:
        block |= {"ttt_dense_0": (heads, head, 4 * head), "ttt_bias_0": (heads, 1, 4 * head)}
        block |= {"ttt_dense_1": (heads, 4 * head, head), "ttt_bias_1": (heads, 1, head)}
    layer = {
        "feed_forward.w1.kernel": (width, inter),
        "feed_forward.w2.kernel": (inter, width),
        "feed_forward.w3.kernel": (width, inter),
        "ffn_norm.kernel": (width,),
        "seq_norm.kernel": (width,),
    }
    conv = {"kernel": (4, 1, width), "bias": (width,)}
    if mamba:
        block["wg.kernel"] = (width, width)
        block |= {f"conv_{name}.{part}": shape for name in "qk" for part, shape in conv.items()}
        layer |= {f"conv.conv1.{part}": shape for part, shape in conv.items()} | {"conv.conv_norm.kernel": (width,)}
    else:
        block["wk.kernel"] = (width, width)
    layer |= {f"seq_modeling_block.{name}": shape for name, shape in block.items()}
    shapes: dict[KeyPath, tuple[int, ...]] = {
        ("model", "h", str(number), *name.split(".")): shape
        for number in range(layers)
        for name, shape in sorted(layer.items())
    }
    shapes |= {("model", "ln_f", "kernel"): (width,), ("model", "wte", "embedding"): (vocab, width)}
    if not tied:
        shapes["lm_head", "kernel"] = (width, vocab)
    return shapes


def random_params(
    shapes: dict[KeyPath, tuple[int, ...]], dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> dict[KeyPath, torch.Tensor]:
    """Random weights for the given shapes, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    return {path: (0.3 * torch.randn(shape, generator=generator)).to(dtype) for path, shape in shapes.items()}
