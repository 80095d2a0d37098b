"""Are the kernels right on this device? The self-check of every kernel, over lengths and head dimensions.

The gradient of tok is sixteen long sums of both signs: in longer sequences its error reaches twice that of the others
(README of the kernels), and it is allowed 2.5 times as much.
"""

from collections.abc import Iterator

import torch

from ttt_impl.kernels import loader, self_check
from ttt_impl.kernels.arguments import KERNELS
from ttt_impl.kernels.bench.clock import one_line
from ttt_impl.kernels.bench.records import Check

LENGTHS = (22, 40, 53, 112, 512)
"""Inside a mini-batch and at its end, few and many of them."""


def check_all(device: torch.device, quick: bool) -> Iterator[Check]:
    """Every kernel at every head dimension that it is written for."""
    for name, kernel in KERNELS.items():
        for width in kernel.widths:
            lengths = (self_check.TOKENS,) if quick or name.endswith("decode") else LENGTHS
            for length in lengths:
                yield from check(name, width, length, device)


def check(name: str, width: int, length: int, device: torch.device) -> Iterator[Check]:
    """The errors of one kernel at one shape; a single row with the reason where it does not run."""
    reason = loader.missing(name, width, device) if device.type == "cuda" else None
    if reason is not None:
        yield Check(name, width, length, "compilation", None, None, reason)
        return
    try:
        for what, error, bound in self_check.errors(name, width, device, length):
            yield Check(name, width, length, what, error, bound * (2.5 if what == "gradient of tok" else 1))
    except Exception as error:  # whatever a driver or a device says
        yield Check(name, width, length, "launch", None, None, one_line(error))
