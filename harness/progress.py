"""Progress on the terminal: a bar a model with loss, tokens/s and ETA; plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_SECONDS = 15.0


class Display:
    """Shows what each model is doing. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.bars = Progress(
            TextColumn("{task.fields[name]:>14}"),
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]:>12}"),
            TextColumn("{task.fields[loss]:>12}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
            refresh_per_second=4,
        )
        self.tasks: dict[str, TaskID] = {}
        self.stages: dict[str, tuple[str, float, float]] = {}
        self.spoken: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def stage(self, name: str, stage: str) -> None:
        """Model `name` begins `stage`."""
        self.stages[name] = (stage, time.monotonic(), 0.0)
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(stage, total=None, name=name, rate="", loss="")
        self.bars.reset(self.tasks[name], total=None, description=stage, rate="", loss="")
        self.spoken[name] = time.monotonic()

    def advance(self, name: str, done: float, total: float, loss: float | None = None, unit: str = "tok") -> None:
        """Model `name` has done so much of its stage."""
        stage, since, first = self.stages[name]
        if not first:
            self.stages[name] = (stage, time.monotonic(), done)
            first, since = done, time.monotonic()
        elapsed = time.monotonic() - since
        rate = (done - first) / elapsed if elapsed > 0 and done > first else None
        rate_text = f"{rate:,.0f} {unit}/s" if rate else ""
        loss_text = f"loss {loss:.3f}" if loss is not None else ""
        self.bars.update(self.tasks[name], completed=done, total=total, rate=rate_text, loss=loss_text)
        if not self.live and time.monotonic() - self.spoken[name] > PLAIN_INTERVAL_SECONDS:
            eta = f"ETA {(total - done) / rate:.0f} s" if rate else ""
            self.say(f"{name:>14} {stage:<10} {done / total:4.0%} {rate_text:>12} {loss_text} {eta}")
            self.spoken[name] = time.monotonic()

    def say(self, text: str, style: str = "") -> None:
        """One line that stays."""
        self.console.print(text, style=style, highlight=False)
