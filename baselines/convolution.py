"""Gated convolutions: every channel mixes its own past by a filter, and the input gates what goes in and comes out.

    q, k, v = projections of x        y = out_proj( q * (filter ∗ (k * v)) )

`filter: long` is Hyena's (Poli et al., arXiv 2302.10866, order 2): q, k and v pass a short convolution first, and the
filter of `reach` taps is itself a small network of the position under a window that decays (section 3.3). `filter:
short` has `reach` free taps and nothing else, as LFM2's layer (Liquid AI, arXiv 2511.23404).

A filter of finite reach has a state of fixed size, the last `reach` - 1 products k * v, and a step is one sum over
them: exact at any position, at a cost that grows with the reach and not with the context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from baselines import _mixer
from baselines._causal_conv import causal_conv
from baselines._fft_conv import fft_conv, fft_flops
from baselines._mixer_family import MixerFamily
from baselines._precision import at_least_float32

FILTERS = {"long": 1024, "short": 4}
"""Reach where none is given."""
SHORT = 3
"""Taps of the convolution of q, k and v before a long filter."""
BANDS, WIDTH, FREQUENCY = 8, 32, 3.0
"""The filter's network: sine and cosine bands of the position, width, and initial frequency of its sines."""
FAST, SLOW, TARGET = 0.3, 1.5, 1e-2
"""The window falls to `TARGET` after these parts of the reach, in the first channel and in the last."""
DIRECT = 8
"""Up to so many tokens the sums are taken one by one, not by FFT."""


@dataclass
class Config(_mixer.MixerConfig):
    """Options of the convolutions; sizes are taken from `size` where they are None."""

    family: str = "convolution"
    filter: str = "long"
    reach: int | None = None
    """Taps of the filter; None: 1024 for a long one, 4 for a short one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filter not in FILTERS:
            raise ValueError(f"convolution: filter={self.filter!r} must be one of {', '.join(FILTERS)}")
        if self.reach is not None and self.reach < 2:
            raise ValueError(f"convolution: reach={self.reach} must be at least 2")

    @property
    def taps(self) -> int:
        """The reach in numbers."""
        return self.reach or FILTERS[self.filter]


class Past(NamedTuple):
    """The last products k * v [B, reach - 1, H], and of a long filter the last projections [B, SHORT - 1, 3 H]."""

    products: Tensor
    projections: Tensor | None


class GatedConvolution(_mixer.Mixer):
    """The gated convolution with its projections."""

    def __init__(self, options: Config, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        self.reach, self.exact_causality = options.taps, options.filter == "short"
        self.in_proj = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.filter: LongFilter | None = None
        self.short: nn.Conv1d | None = None
        if options.filter == "short":
            self.taps = nn.Parameter(torch.empty(self.reach, hidden_size))
        else:
            self.filter = LongFilter(hidden_size, self.reach)
            self.short = nn.Conv1d(3 * hidden_size, 3 * hidden_size, SHORT, groups=3 * hidden_size)

    def forward(self, x: Tensor, state: Past | None, keep: bool, wanted: int = 0) -> tuple[Tensor, Past | None]:
        """x [B, L, H]."""
        length, projected = x.shape[1], self.in_proj(x)
        projections = None
        if self.short is not None:
            window = _after(None if state is None else state.projections, projected, SHORT - 1)
            assert self.short.bias is not None
            projected = _convolve(window, self.short.weight, self.short.bias).to(x.dtype)
            projections = window[:, length:]
        q, k, v = projected.chunk(3, -1)
        count = min(self.reach, length) if state is None else self.reach
        taps = self.taps[:count] if self.filter is None else self.filter(count)
        window = _after(None if state is None else state.products, k * v, len(taps) - 1)
        with torch.autocast(x.device.type, enabled=False):
            y = self._filtered(at_least_float32(window), at_least_float32(taps), length)
        y = self.out_proj((q * y.to(x.dtype))[:, -wanted:])
        if not keep:
            return y, None
        missing = max(0, self.reach - 1 - window.shape[1])
        return y, Past(F.pad(window, (0, 0, missing, 0))[:, 1 - self.reach :], projections)

    def _filtered(self, window: Tensor, taps: Tensor, length: int) -> Tensor:
        """The last `length` outputs [B, length, H] of `window` [B, K - 1 + length, H] and `taps` [K, H]."""
        if self.exact_causality:
            self.kernel_path = "torch-taps"
            return _convolve(window, taps.t().flip(1).unsqueeze(1), taps.new_zeros(taps.shape[1]))
        if length <= DIRECT:
            self.kernel_path = "torch-sums"
            views, weight = window.unfold(1, len(taps), 1), taps.flip(0)
            return torch.stack([torch.einsum("bhk,kh->bh", views[:, t], weight) for t in range(length)], 1)
        self.kernel_path = "torch-fft"
        window, parts = window.transpose(1, 2), []
        for first in range(0, length, self.reach):
            size = min(self.reach, length - first)
            part = window[..., first : first + len(taps) - 1 + size]
            parts.append(fft_conv(part.contiguous(), taps.t(), size))
        return torch.cat(parts, -1).transpose(1, 2)

    @classmethod
    def count(cls, options: Config, hidden_size: int) -> int:
        """Four square projections and the taps; a long filter's network, and the short convolution before it."""
        if options.filter == "short":
            return (4 * hidden_size + options.taps) * hidden_size
        network = WIDTH * (2 * BANDS + 2) + WIDTH * (WIDTH + 1) + 2 * WIDTH + WIDTH * hidden_size
        return 4 * hidden_size * hidden_size + 3 * hidden_size * (SHORT + 1) + network + hidden_size

    @classmethod
    def flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """2 a weight of the projections and a tap, per token; a long filter by FFT in pieces, its taps made once."""
        dense = 8 * length * hidden_size * hidden_size
        if options.filter == "short":
            return dense + 2 * length * options.taps * hidden_size
        taps = min(options.taps, length)
        network = 2 * taps * WIDTH * (2 * BANDS + 1 + WIDTH + hidden_size)
        pieces = -(-length // options.taps)
        return dense + 6 * length * SHORT * hidden_size + network + pieces * hidden_size * fft_flops(taps, taps)

    @classmethod
    def step_flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """2 a weight and tap; the taps are there."""
        short = 6 * SHORT * hidden_size if options.filter == "long" else 0
        return 8 * hidden_size * hidden_size + 2 * options.taps * hidden_size + short

    def initialise(self) -> None:
        """The long filter's own; free taps as PyTorch a convolution, uniform within 1 / sqrt(reach)."""
        if self.filter is None:
            init.uniform_(self.taps, -(self.reach**-0.5), self.reach**-0.5)
        else:
            self.filter.initialise()


class LongFilter(nn.Module):
    """Hyena's implicit filter: a network with sines of the position, a window, and a direct way for the last input."""

    def __init__(self, hidden_size: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.first, self.second = nn.Linear(2 * BANDS + 1, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, hidden_size, bias=False)
        self.frequency = nn.Parameter(torch.empty(2, WIDTH))
        self.skip = nn.Parameter(torch.empty(hidden_size))
        self._made: tuple[object, Tensor] | None = None

    def forward(self, count: int) -> Tensor:
        """The first `count` taps [count, H], the nearest first; while nothing is learned they are made once."""
        if torch.is_grad_enabled():
            self._made = None
            return self._make(count)
        key = count, tuple((p.data_ptr(), p._version, p.dtype) for p in self.parameters())
        if self._made is None or self._made[0] != key:
            self._made = key, self._make(count)
        return self._made[1]

    def _make(self, count: int) -> Tensor:
        like = self.skip
        place = torch.arange(count, device=like.device, dtype=torch.float64).unsqueeze(1) / self.reach
        turns = torch.logspace(0, math.log2(self.reach / 2), BANDS, 2, device=like.device, dtype=torch.float64)
        angles = 2 * math.pi * place * turns
        features = torch.cat([place, angles.cos(), angles.sin()], 1).to(like.dtype)
        hidden = torch.sin(self.frequency[0] * self.first(features))
        hidden = torch.sin(self.frequency[1] * self.second(hidden))
        ends = torch.linspace(FAST, SLOW, len(like), device=like.device, dtype=torch.float64)
        window = torch.exp(math.log(TARGET) / ends * place).to(like.dtype)
        taps = self.last(hidden) * window
        return taps + F.pad(self.skip.unsqueeze(0), (0, 0, 0, count - 1))

    def initialise(self) -> None:
        """PyTorch's default for the network; taps that together weigh about as much as the direct way."""
        for layer in (self.first, self.second):
            bound = layer.in_features**-0.5
            init.uniform_(layer.weight, -bound, bound)
            init.uniform_(layer.bias, -bound, bound)
        init.normal_(self.last.weight, std=(WIDTH * self.reach / 16) ** -0.5)
        init.constant_(self.frequency, FREQUENCY)
        init.normal_(self.skip)


def _after(past: Tensor | None, x: Tensor, count: int) -> Tensor:
    """`x` [B, L, H] behind its `count` inputs before, which are zero at the start."""
    return F.pad(x, (0, 0, count, 0)) if past is None else torch.cat([past, x], 1)


def _convolve(window: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The depthwise convolution [D, 1, K] of `window` [B, K - 1 + L, D], at least float32: [B, L, D]."""
    return causal_conv(*(at_least_float32(part) for part in (window, weight, bias)))


class Convolution(MixerFamily):
    """Gated convolutions behind the common interface."""

    Config = Config
    Mixer = GatedConvolution
