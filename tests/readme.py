"""The README as data: the files it shows and the commands it gives, so that tests run what a reader reads."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parent.parent / "README.md").read_text()


def files() -> dict[str, str]:
    """Path → content of every block that a `<!-- file: … -->` line names."""
    return dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TEXT, flags=re.DOTALL))


def commands() -> list[str]:
    """Every line of every shell block."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def python_blocks() -> list[str]:
    """Every block of Python."""
    return re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
