"""Linear attention (Katharopoulos et al., arXiv 2006.16236): a product of features in place of the softmax.

    y_t = φ(q_t)·S_t / φ(q_t)·z_t        S_t = Σ_{j <= t} φ(k_j) v_jᵀ        z_t = Σ_{j <= t} φ(k_j)        φ = elu + 1

(equations 9 and 18 to 20). The sums are a state of fixed size. Whole sequences go by chunks: between chunks by the
state, inside one by the masked scores. Rotary positions turn the features in the numerator alone, so that the
denominator stays positive (Su et al., arXiv 2104.09864, equation 19).

Feature map and denominator can be left out: y_t = q_t·S_t, whose scale a LayerNorm before the output projection takes
care of (Qin et al., arXiv 2210.10340, found both to hurt). This is the "improved" linear attention of the TTT paper
(arXiv 2407.04620, Table 1 and Sec. 2.6, footnote 8), and the one that a TTT layer equals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines import _mixer
from baselines._mixer_family import MixerFamily
from baselines._precision import at_least_float32
from baselines._rotary import rotary

FEATURES: dict[str, Callable[[Tensor], Tensor]] = {"elu": lambda x: F.elu(x) + 1, "identity": lambda x: x}
EPSILON = 1e-6
CHUNK = 64
"""Tokens that see one another by scores; of the order of the head width, where both ways cost the same."""


@dataclass
class Config(_mixer.MixerConfig):
    """Options of linear attention; sizes are taken from `size` where they are None."""

    family: str = "linear_attention"
    rotary: bool = True
    features: str = "elu"
    """φ: elu + 1, or the identity."""
    normaliser: bool = True
    """Whether the sum of values is divided by that of weights; needs positive features."""
    output_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features not in FEATURES:
            raise ValueError(f"linear_attention: features={self.features!r} must be one of {', '.join(FEATURES)}")
        if self.normaliser and self.features != "elu":
            raise ValueError("linear_attention: normaliser=True needs features='elu', which are positive")


class Sums(NamedTuple):
    """What is remembered: S [B, heads, f, f], z [B, heads, f] for a normaliser, and how many tokens that is."""

    S: Tensor
    z: Tensor | None
    tokens: int


class LinearAttention(_mixer.Mixer):
    """Linear attention with its projections."""

    kernel_path = "torch-chunks"

    def __init__(self, options: Config, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        assert options.head_dim is not None
        self.heads, self.turned = hidden_size // options.head_dim, options.rotary
        self.features, self.normaliser = FEATURES[options.features], options.normaliser
        self.output_norm = nn.LayerNorm(hidden_size, eps=EPSILON) if options.output_norm else nn.Identity()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, state: Sums | None, keep: bool, wanted: int = 0) -> tuple[Tensor, Sums | None]:
        """x [B, L, H]."""
        q, k, v = (
            at_least_float32(proj(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        with torch.autocast(x.device.type, enabled=False):
            y, after = self._attend(self.features(q), self.features(k), v, state)
        y = self.output_norm(y[:, :, -wanted:].transpose(1, 2).flatten(2).to(x.dtype))
        return self.o_proj(y), after if keep else None

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, state: Sums | None) -> tuple[Tensor, Sums]:
        """Features q, k and values v [B, heads, L, f] -> y like v, and the sums after them."""
        rows, heads, length, f = v.shape
        if state is None:
            state = Sums(v.new_zeros(rows, heads, f, f), v.new_zeros(rows, heads, f) if self.normaliser else None, 0)
        z = None if state.z is None else state.z.unsqueeze(2) + k.cumsum(2)
        normaliser = None if z is None else (q * z).sum(-1, keepdim=True)
        if self.turned:
            positions = torch.arange(state.tokens, state.tokens + length, device=v.device)
            q, k = rotary(q, positions), rotary(k, positions)
        q, k, v = (_chunks(part) for part in (q, k, v))
        products = torch.cat([state.S.unsqueeze(2), k.mT @ v], 2).cumsum(2)
        y = q @ products[:, :, :-1] + (q @ k.mT).tril() @ v
        y = y.flatten(2, 3)[:, :, :length]
        after = Sums(products[:, :, -1], None if z is None else z[:, :, -1], state.tokens + length)
        return y if normaliser is None else y / normaliser, after

    @classmethod
    def count(cls, options: Config, hidden_size: int) -> int:
        """Four square projections and the norm before the last."""
        return 4 * hidden_size * hidden_size + 2 * hidden_size * options.output_norm

    @classmethod
    def flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """Per token 2 a weight; 4 f H to write and read S; 4 C H for the scores of a chunk, counted whole."""
        assert options.head_dim is not None
        chunk = min(CHUNK, length)
        tokens = -(-length // chunk) * chunk
        return 8 * length * hidden_size * hidden_size + 4 * tokens * (options.head_dim + chunk) * hidden_size


def _chunks(x: Tensor) -> Tensor:
    """[B, heads, L, f] -> [B, heads, n, C, f], zeros where the last chunk is not full; they add nothing to a sum."""
    length = x.shape[2]
    chunk = min(CHUNK, length)
    return F.pad(x, (0, 0, 0, -length % chunk)).unflatten(2, (-1, chunk))


class LinearAttentionModel(MixerFamily):
    """Linear attention behind the common interface."""

    Config = Config
    Mixer = LinearAttention
