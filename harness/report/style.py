"""One look for every model, in every figure: the same colour and marker wherever its name appears.

Colours are those of Okabe and Ito (Color Universal Design, 2008), told apart under the common kinds of colour
blindness; markers differ too, so that a grey print still reads. This table is the only place where the report knows
names, and only for their looks: a name that it lacks gets a free pair of its own, the same in every report of those
models.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

STYLE = Path(__file__).with_name("style.mplstyle")
SINGLE, DOUBLE = 3.4, 7.0  # column widths of a journal, in inches
FLOOR_DASHES = ("dashed", "dotted", "dashdot")
GREY = "#666666"
DAGGER = "†"  # ends the name of a model that is not like the others (see `likeness`)


class Look(NamedTuple):
    """Colour and marker of a model."""

    color: str
    marker: str


LOOKS = {
    "transformer": Look("#0072B2", "o"),
    "mamba": Look("#D55E00", "s"),
    "mamba2": Look("#E69F00", "D"),
    "ttt_linear": Look("#009E73", "^"),
    "ttt_mlp": Look("#CC79A7", "v"),
}
_SPARE_COLORS = ("#56B4E9", "#332288", "#000000", "#882255", "#999933", "#8C510A", "#66A61E")
_SPARE_MARKERS = ("P", "X", "*", "<", ">", "h", "d")


def readable(color: str) -> str:
    """A darker shade of the colour, for text: thin strokes need more contrast than lines."""
    return "#" + "".join(f"{int(int(color[i : i + 2], 16) * 0.8):02x}" for i in (1, 3, 5))


def rank(name: str) -> tuple[int, str]:
    """Sort key: names of the table in its order, then the others by alphabet."""
    known, plain = list(LOOKS), name.rstrip(DAGGER)
    return (known.index(plain) if plain in LOOKS else len(known), name)


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each name: the table's, else a spare one by the name's checksum, the next free one if it is taken."""
    chosen = {name: LOOKS[name.rstrip(DAGGER)] for name in names if name.rstrip(DAGGER) in LOOKS}
    count = len(_SPARE_COLORS)
    for name in sorted(set(names) - set(chosen)):
        start = zlib.crc32(name.rstrip(DAGGER).encode())
        turns = [((start + turn) % count, turn // count) for turn in range(count**2)]
        spares = [Look(_SPARE_COLORS[i], _SPARE_MARKERS[(i + shift) % count]) for i, shift in turns]
        chosen[name] = next((look for look in spares if look not in chosen.values()), spares[0])
    return {name: chosen[name] for name in names}
