"""`python -m harness.data data=…`: tokenises a corpus and says what there is, ahead of any run that uses it.

Takes the config of the main job, whose runs then find the tokens where this command left them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = """\
Tokenises a corpus once, ahead of the runs that use it; interrupted, the same command continues.

  python -m harness.data data=jsonl 'data.path=pile/*.jsonl.zst' data.test_path=pile/val.jsonl.zst
  python -m harness.data data=hf data.path=OWNER/NAME data.test_split=test data.tokenizer=gpt2 data.processes=16

Groups and keys as in `python -m harness --help`. Exit code 2 for a config that cannot be.
"""


def main() -> None:
    """Entry point; the exit code is 0, or 2 with one line on stderr for a config that cannot be."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return
    from harness.cli import run_hydra

    sys.exit(run_hydra("config", tokenise_corpus))


def tokenise_corpus(composed: DictConfig) -> int:
    """Make the tokens of a config's corpus and print what they are."""
    from rich.console import Console
    from rich.table import Table

    from harness.config import RunConfig, typed_rest
    from harness.data.shown import tokenised
    from harness.data.sources import SPLITS

    config = typed_rest(RunConfig, composed)
    started, console = time.perf_counter(), Console()
    store = tokenised(config.data, Path(config.output), console)
    table = Table("", *SPLITS)
    for kind in ("documents", "tokens", "bytes"):
        table.add_row(kind, *(f"{store.total(kind, split):,}" for split in SPLITS))
    ratios = (store.total("bytes", split) / store.total("tokens", split) for split in SPLITS)
    table.add_row("bytes a token", *(f"{ratio:.3f}" for ratio in ratios))
    console.print(table)
    seconds = time.perf_counter() - started
    console.print(f"{store.folder}: vocabulary {store.vocab_size:,}; {seconds:.1f} s", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    main()
