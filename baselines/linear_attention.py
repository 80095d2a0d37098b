"""Linear attention (Katharopoulos et al., arXiv 2006.16236): a product of features in place of the softmax.

    y_t = φ(q_t)·S_t / φ(q_t)·z_t        S_t = Σ_{j <= t} φ(k_j) v_jᵀ        z_t = Σ_{j <= t} φ(k_j)        φ = elu + 1

(equations 9 and 18 to 20). The sums are a state of fixed size. Whole sequences go by chunks: between chunks by the
state, inside one by the masked scores. Rotary positions turn the features in the numerator alone, so that the
denominator stays positive (Su et al., arXiv 2104.09864, equation 19).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines import _mixer
from baselines._mixer_family import MixerFamily
from baselines._precision import at_least_float32
from baselines._rotary import rotary

CHUNK = 64
"""Tokens that see one another by scores; of the order of the head width, where both ways cost the same."""


@dataclass
class Config(_mixer.MixerConfig):
    """Options of linear attention; sizes are taken from `size` where they are None."""

    family: str = "linear_attention"
    rotary: bool = True


class Sums(NamedTuple):
    """What is remembered: S [B, heads, f, f], z [B, heads, f], and how many tokens that is."""

    S: Tensor
    z: Tensor
    tokens: int


class LinearAttention(_mixer.Mixer):
    """Linear attention with its projections."""

    kernel_path = "torch-chunks"

    def __init__(self, options: Config, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        assert options.head_dim is not None
        self.heads, self.turned = hidden_size // options.head_dim, options.rotary
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, state: Sums | None, keep: bool) -> tuple[Tensor, Sums | None]:
        """x [B, L, H]."""
        q, k, v = (
            at_least_float32(proj(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        with torch.autocast(x.device.type, enabled=False):
            y, after = self._attend(F.elu(q) + 1, F.elu(k) + 1, v, state)
        return self.o_proj(y.transpose(1, 2).flatten(2).to(x.dtype)), after if keep else None

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, state: Sums | None) -> tuple[Tensor, Sums]:
        """Features q, k and values v [B, heads, L, f] -> y like v, and the sums after them."""
        rows, heads, length, f = v.shape
        if state is None:
            state = Sums(v.new_zeros(rows, heads, f, f), v.new_zeros(rows, heads, f), 0)
        z = state.z.unsqueeze(2) + k.cumsum(2)
        normaliser = (q * z).sum(-1, keepdim=True)
        if self.turned:
            positions = torch.arange(state.tokens, state.tokens + length, device=v.device)
            q, k = rotary(q, positions), rotary(k, positions)
        q, k, v = (_chunks(part) for part in (q, k, v))
        products = torch.cat([state.S.unsqueeze(2), k.mT @ v], 2).cumsum(2)
        y = q @ products[:, :, :-1] + (q @ k.mT).tril() @ v
        y = y.flatten(2, 3)[:, :, :length] / normaliser
        return y, Sums(products[:, :, -1], z[:, :, -1], state.tokens + length)

    @classmethod
    def count(cls, options: Config, hidden_size: int) -> int:
        """Four square projections."""
        return 4 * hidden_size * hidden_size

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
