"""Faults planted in a kernel: all of them in one compiled library, one switched on at a time.

A mutant replaces expressions, `old` becoming `(mutant == i ? (new) : (old))`, or statements (`old` ends with a
semicolon), `if (mutant == i) {new} else {old}`; so thirty faults cost one compilation. A comment at the end of `old`
tells apart what else looks alike. Indentation is taken out of the source before.
"""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from ttt_impl.kernels import emulation
from ttt_impl.kernels.compiler import flattened

SWITCH = 'static int mutant = 0;\nextern "C" void switch_mutant(int i) { mutant = i; }\n'


class Mutant(NamedTuple):
    """A fault: its name and which expressions become which."""

    name: str
    swaps: dict[str, str]


class Mutants:
    """The library of a source file with all its mutants."""

    def __init__(self, source: str, mutants: list[Mutant], folder: Path) -> None:
        self.source, self.names = source, [m.name for m in mutants]
        text = re.sub(r"^ +", "", re.sub(r" +//", " //", flattened(source)), flags=re.MULTILINE)
        choices: dict[str, str] = {}
        for number, mutant in enumerate(mutants, 1):
            for old, new in mutant.swaps.items():
                assert text.count(old) == 1, f"{mutant.name}: {old!r} stands {text.count(old)} times in {source}"
                code = old.partition(" //")[0]
                other = choices.get(old, code)
                if code.endswith(";"):
                    choices[old] = f"if (mutant == {number}) {{{new}}} else {{{other}}}"
                else:
                    choices[old] = f"(mutant == {number} ? ({new}) : ({other}))"
        for old, choice in choices.items():
            text = text.replace(old, f"{choice} //" if " //" in old else choice)
        self.library = emulation.build(SWITCH + text, 64, folder / f"{source}.so")

    @contextmanager
    def active(self, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Launches of this source run the mutant inside the block."""
        plain = emulation.library

        def library(source: str, width: int) -> ctypes.CDLL:
            return self.library if source == self.source else plain(source, width)

        self.library.switch_mutant(self.names.index(name) + 1)
        with monkeypatch.context() as patch:
            patch.setattr(emulation, "library", library)
            yield
