"""Energy a token, where a GPU's board counts what it draws (NVML, by the package nvidia-ml-py).

The board's counter moves some ten times a second, so single calls are no use: the same work goes on for as long as a
shape is timed at least, after the timed turns, and the counter is read once before and once after. What it counts is
the whole board, idle power included. Where the package, the counter or a GPU is missing the answer is None.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

GoOn = Callable[[], bool]
"""Asked before each call of some work: whether there is to be another."""

SHORTEST = 0.5
"""Seconds of work below which the counter has moved too few times to be believed."""


def board_joules(device: str) -> Callable[[], float] | None:
    """Tells the joules that the board of this process' GPU has drawn since its driver was loaded."""
    if device != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:  # no driver, a part of a GPU, or a board from before there were counters
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000


def joules_per_token(
    repeat: Callable[[GoOn], int],
    joules: Callable[[], float],
    seconds: float,
    synchronize: Callable[[], None],
    now: Callable[[], float] = time.monotonic,
) -> float | None:
    """Joules a token of work that `repeat` goes on with for so many seconds; it returns the tokens it has done.

    The counter is read when `repeat` first asks whether to go on, so that what it prepares before does not count. None
    if the work ended too early to tell.
    """
    begun: list[tuple[float, float]] = []

    def go_on() -> bool:
        if not begun:
            synchronize()
            begun.append((joules(), now()))
        return now() - begun[0][1] < max(seconds, SHORTEST)

    tokens = repeat(go_on)
    synchronize()
    if not begun or not tokens or now() - begun[0][1] < SHORTEST:
        return None
    return (joules() - begun[0][0]) / tokens
