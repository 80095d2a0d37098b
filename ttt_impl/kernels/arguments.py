"""What a launch hands over, laid out as the structs of the .cu files, and the shape of every kernel.

Pointers come before integers in each struct, so C and ctypes agree on the padding.
"""

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TOKENS = 16
"""Of a mini-batch."""
WIDTHS = (64, 96, 128)
"""Head dimensions that the kernels are written for."""
MLP_WIDTHS = (64,)
"""Those of TTT-MLP's kernels."""
BF16 = ("q", "k", "v", "d_out")
"""What they read in bfloat16."""
ALIGNMENT = 16
"""Bytes that one lane copies at a time."""


def _pointers(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, ctypes.c_void_p) for name in names)


class Arguments(ctypes.Structure):
    """A struct of pointers and integers."""

    def set(self, **fields: Tensor | int | None) -> "Arguments":
        """Set integers, and pointers to the tensors given; None leaves a null pointer.

        What a kernel reads may come in any strides: it is copied where it is not contiguous or begins at an address
        that asynchronous copies refuse. Such copies live as long as this object.
        """
        for name, value in fields.items():
            if isinstance(value, Tensor):
                value = value.contiguous()
                value = value if value.data_ptr() % ALIGNMENT == 0 else value.clone()
                self.__dict__.setdefault("held", []).append(value)
                value = value.data_ptr()
            setattr(self, name, value)
        return self

    def set_in_place(self, **fields: Tensor) -> None:
        """Set pointers to what a kernel changes, which no copy may stand in for."""
        moved = [name for name, x in fields.items() if not x.is_contiguous() or x.data_ptr() % ALIGNMENT]
        if moved:
            raise ValueError(f"{', '.join(moved)} of the state cannot be changed in place; valid: contiguous, aligned")
        self.set(**fields)


class Problem(Arguments):
    """Mirrors `struct Problem`."""

    _fields_ = (
        *_pointers("q", "k", "v", "lr", "tok", "gamma", "beta", "segments"),
        ("length", ctypes.c_int),
        ("heads", ctypes.c_int),
        ("every", ctypes.c_int),
    )


class ForwardArgs(Arguments):
    """Mirrors `struct ForwardArgs`."""

    _fields_ = (
        ("p", Problem),
        *_pointers("start", "keys", "ghat", "out", "end", "end_keys", "end_ghat", "updates", "checkpoints"),
    )


class BackwardArgs(Arguments):
    """Mirrors `struct BackwardArgs`."""

    _fields_ = (
        ("p", Problem),
        *_pointers("d_out", "end", "updates", "checkpoints", "d_end", "dq", "dk", "dv", "dlr", "dtok"),
        *_pointers("dgamma", "dbeta", "d_start"),
    )


class DecodeArgs(Arguments):
    """Mirrors `struct DecodeArgs`."""

    _fields_ = (("p", Problem), *_pointers("weights", "keys", "ghat", "count", "lengths", "out"))


class MLPForwardArgs(Arguments):
    """Mirrors `struct ForwardArgs` of TTT-MLP."""

    _fields_ = (
        ("p", Problem),
        *_pointers("start1", "start2", "keys", "ghat2", "out", "end1", "end2"),
        *_pointers("end_keys", "end_ghat1", "end_ghat2", "updates", "saved_ghat2", "checkpoints"),
    )


class MLPBackwardArgs(Arguments):
    """Mirrors `struct BackwardArgs` of TTT-MLP."""

    _fields_ = (
        ("p", Problem),
        *_pointers("d_out", "end1", "end2", "updates", "saved_ghat2", "checkpoints", "d_end1", "d_end2"),
        *_pointers("dq", "dk", "dv", "dlr", "dtok", "dgamma", "dbeta", "d_start1", "d_start2", "scratch"),
    )


class MLPDecodeArgs(Arguments):
    """Mirrors `struct DecodeArgs` of TTT-MLP."""

    _fields_ = (
        ("p", Problem),
        *_pointers("weights1", "weights2", "keys", "ghat1", "ghat2", "x2", "count", "lengths", "out"),
    )


class Kernel(NamedTuple):
    """Where a kernel stands and what one CTA of it takes, for a head dimension f."""

    source: str
    threads: Callable[[int], int]
    shared: Callable[[int], int]
    """Bytes of shared memory."""
    widths: tuple[int, ...] = WIDTHS


def _forward(warps: int, width: int) -> int:
    tiles, sums, stats = 4 * 3 * TOKENS * width * 2, 2 * 8 * TOKENS * warps * 4, warps * 32 * 16
    return tiles + sums + stats


def _backward(width: int) -> int:
    warps, tile = width // 16, TOKENS * width * 2
    tiles, sums, stats = (2 * 4 + 3) * tile + 2 * width * width * 2, 16 * TOKENS * warps * 4, warps * 2 * TOKENS * 16
    return tiles + sums + stats


def _decode(width: int) -> int:
    return 4 * ((2 * 3 + 2 * TOKENS + 2 * 8) * width + TOKENS)


def mlp_gradients(width: int) -> int:
    """Numbers of dW1 and dW2, without biases."""
    return 8 * width * width


def _mlp_forward(width: int) -> int:
    tiles, sums = (4 * 3 + 1) * TOKENS * width * 2, 2 * 8 * TOKENS * width * 4
    return tiles + sums


def _mlp_backward(width: int) -> int:
    tiles, sums = 10 * TOKENS * width * 2, 2 * 8 * TOKENS * width * 4
    scores, biases, head = (8 + 2) * TOKENS * TOKENS * 4, 2 * 5 * width * 4, 64
    return tiles + sums + scores + biases + head


def _mlp_decode(width: int) -> int:
    return 4 * ((2 * 3 + 2 * TOKENS + 8) * width + (2 * TOKENS + 1) * 4 * width + 8 * TOKENS + TOKENS)


KERNELS = {
    "ttt_linear_fwd": Kernel("ttt_linear_fwd.cu", lambda f: 2 * f, lambda f: _forward(f // 16, f)),
    "ttt_linear_fwd_wide": Kernel("ttt_linear_fwd.cu", lambda f: f, lambda f: _forward(f // 32, f), (64,)),
    "ttt_linear_bwd": Kernel("ttt_linear_bwd.cu", lambda f: 2 * f, _backward),
    "ttt_linear_decode": Kernel("ttt_linear_decode.cu", lambda f: 2 * f, _decode),
    "ttt_mlp_fwd": Kernel("ttt_mlp_fwd.cu", lambda f: 4 * f, _mlp_forward, MLP_WIDTHS),
    "ttt_mlp_bwd": Kernel(
        "ttt_mlp_bwd.cu", lambda f: 4 * f, lambda f: _mlp_backward(f) + 4 * mlp_gradients(f), MLP_WIDTHS
    ),
    "ttt_mlp_bwd_small": Kernel("ttt_mlp_bwd.cu", lambda f: 4 * f, _mlp_backward, MLP_WIDTHS),
    "ttt_mlp_decode": Kernel("ttt_mlp_decode.cu", lambda f: 4 * f, _mlp_decode, MLP_WIDTHS),
}
"""Checked against the sources by the emulation tests."""


def problem(
    q: Tensor, k: Tensor, v: Tensor, lr: Tensor, tok: Tensor, gamma: Tensor, beta: Tensor,
    segments: Tensor | None, every: int,
) -> Problem:  # fmt: skip
    """q, k, v [B, L, H, f] bf16; lr [B, H, L]; tok [16]; gamma, beta [H, f]; segments [S, 5] int32."""
    length, heads = q.shape[1:3]
    struct = Problem()
    struct.set(q=q, k=k, v=v, lr=lr, tok=tok, gamma=gamma, beta=beta, segments=segments)
    struct.set(length=length, heads=heads, every=every)
    return struct


def check(widths: tuple[int, ...] = WIDTHS, **tensors: Tensor) -> None:
    """Refuse types and widths that the kernels cannot read: q, k, v and d_out are bf16, all else float32."""
    width = tensors["q"].shape[3]
    if width not in widths:
        raise ValueError(f"head dimension {width}; valid choices: {', '.join(map(str, widths))}")
    if len(tensors["tok"]) != TOKENS:
        raise ValueError(f"mini-batch of {len(tensors['tok'])} tokens; valid choices: {TOKENS}")
    for name, x in tensors.items():
        wanted = torch.bfloat16 if name in BF16 else torch.float32
        if x.dtype != wanted:
            raise ValueError(f"{name} has dtype {x.dtype}; valid choices: {wanted}")
