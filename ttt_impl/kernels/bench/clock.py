"""Time on a GPU, and turns that are fair: candidates alternate, so that a drift of the clock hits all alike."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch

WARM = 3
"""Calls before the first that counts; compilers and caches are then done."""
REPEATS = 10
"""Turns at least."""


class Clock(Protocol):
    """Measures one call."""

    def seconds(self, call: Callable[[], object]) -> float:
        """How long it took."""


class CudaClock:
    """Events on the stream, read after the call has ended."""

    def seconds(self, call: Callable[[], object]) -> float:
        """Time on the device between two marks around the call, idling for Python included."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


class Times(NamedTuple):
    """What became of a candidate."""

    seconds: list[float]
    failure: str = ""
    """Why it left, in one line."""


def take_turns(candidates: Mapping[str, Callable[[], object]], clock: Clock, seconds: float) -> dict[str, Times]:
    """Warm everyone, then turns of one call each, at least `REPEATS` and until each has had `seconds`.

    Who raises leaves and keeps the reason; the others go on.
    """
    times = {name: Times([]) for name in candidates}
    for _ in range(WARM):
        for name in _present(times):
            _turn(name, candidates, clock, times)
    times = {name: Times([], found.failure) for name, found in times.items()}
    turns = 0
    while _present(times) and (turns < REPEATS or any(sum(times[name].seconds) < seconds for name in _present(times))):
        for name in _present(times):
            _turn(name, candidates, clock, times)
        turns += 1
    return times


def _present(times: Mapping[str, Times]) -> list[str]:
    return [name for name, found in times.items() if not found.failure]


def _turn(name: str, candidates: Mapping[str, Callable[[], object]], clock: Clock, times: dict[str, Times]) -> None:
    try:
        times[name].seconds.append(clock.seconds(candidates[name]))
    except Exception as error:  # out of memory, a compiler, a kernel of somebody else's
        times[name] = Times(times[name].seconds, one_line(error))


def one_line(error: Exception) -> str:
    """The first line of what an exception says, with its kind."""
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else type(error).__name__
    )


def measured_ceilings(clock: Clock, device: torch.device) -> tuple[float, float]:
    """Bytes a second of a copy of 1 GiB, read and written; operations a second of a bf16 product of 8192 x 8192."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target, a = torch.empty_like(source), torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)
    work = {"copy": lambda: target.copy_(source), "product": lambda: a @ a}
    best = {name: min(found.seconds) for name, found in take_turns(work, clock, 0.0).items()}
    return 2 * source.numel() / best["copy"], 2 * 8192**3 / best["product"]
