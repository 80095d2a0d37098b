"""Traditional recurrent networks, LSTM (Hochreiter & Schmidhuber 1997) and GRU (Cho et al., arXiv 1406.1078).

PyTorch's own cells (cuDNN on a GPU) as mixers of the shared backbone. Each step waits for the last one, in training
too, which is what every other family here avoids; the state is one vector (LSTM: two) of the width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import initialization as init

from baselines import _mixer
from baselines._mixer_family import MixerFamily

CELLS: dict[str, tuple[Any, int]] = {"lstm": (nn.LSTM, 4), "gru": (nn.GRU, 3)}
"""Module, and number of matrices for the input and again for the state."""


@dataclass
class Config(_mixer.MixerConfig):
    """Options of the recurrent networks; sizes are taken from `size` where they are None."""

    family: str = "recurrent"
    cell: str = "lstm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell not in CELLS:
            raise ValueError(f"recurrent: cell={self.cell!r} must be one of {', '.join(CELLS)}")


class Cells(_mixer.Mixer):
    """An LSTM or GRU of the backbone's width, then a projection."""

    def __init__(self, options: Config, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        self.kernel_path = f"torch-{options.cell}"
        self.cells = CELLS[options.cell][0](hidden_size, hidden_size, batch_first=True)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, state: Any, keep: bool, wanted: int = 0) -> tuple[Tensor, Any]:
        """x [B, L, H]; the state is [B, H], of an LSTM a pair of such."""
        before = None if state is None else _mixer.each_tensor(state, lambda s: s.unsqueeze(0))
        y, after = self.cells(x, before)
        return self.out_proj(y[:, -wanted:]), _mixer.each_tensor(after, lambda s: s.squeeze(0)) if keep else None

    @classmethod
    def count(cls, options: Config, hidden_size: int) -> int:
        """A matrix and a bias each for input and state, for every gate; the projection."""
        return 2 * CELLS[options.cell][1] * hidden_size * (hidden_size + 1) + hidden_size * hidden_size

    @classmethod
    def flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """2 a weight and token; gates' elementwise work is left out, below one percent."""
        return 2 * length * (2 * CELLS[options.cell][1] + 1) * hidden_size * hidden_size

    def initialise(self) -> None:
        """PyTorch's default: uniform within 1 / sqrt(H)."""
        bound = self.cells.hidden_size**-0.5
        for parameter in self.cells.parameters():
            init.uniform_(parameter, -bound, bound)


class Recurrent(MixerFamily):
    """LSTM or GRU behind the common interface."""

    Config = Config
    Mixer = Cells
