"""Makes the tokens of a corpus while the terminal shows how far that is, where it takes more than a moment."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rich.console import Console

from harness.data.config import DataConfig
from harness.data.tokens import TokenStore
from harness.progress import Display


def tokenised(config: DataConfig, root: Path, console: Console) -> TokenStore:
    """The store of `TokenStore.build`; what is done in one go shows nothing."""
    with contextlib.ExitStack() as stack:
        display = Display(console)

        def advance(done: float, total: float) -> None:
            if not display.stages:
                stack.enter_context(display)
                display.stage("data", "tokenise")
            display.advance("data", done / 1e6, total / 1e6, unit="MB")

        return TokenStore.build(config, root, advance)
