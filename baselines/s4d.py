"""S4D (Gu et al., arXiv 2206.11893): a linear state space model that does not change with time, its state diagonal.

Every channel has N / 2 complex numbers with h_t = Ā h_{t-1} + u_t, and reads y_t = 2 Re(C̄ · h_t) + D u_t, where
Ā = exp(Δ A) and C̄ = C (exp(Δ A) - 1) / A (zero-order hold with B = 1; the real half of conjugate pairs). As a
convolution y = K ∗ u + D u with K_l = 2 Re(C̄ · Ā^l) (section 3.3); a step is one turn of the recurrence. Then GELU and
a gated linear unit mix the channels, as in S4.

Powers Ā^l for l < T are products of two tables of about sqrt(T), Ā^(a s) and Ā^b, so that the kernel, the state
after a piece, and what a state adds to the piece after it are batched real matrix products, and nothing of size T × N
is ever there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from baselines import _mixer
from baselines._fft_conv import fft_conv, fft_flops
from baselines._mixer_family import MixerFamily
from baselines._precision import at_least_float32

PIECE = 1024
"""Tokens of one convolution; between pieces goes the state."""
STEP_SIZES = 1e-3, 1e-1
"""Δ is drawn log-uniformly from here."""


@dataclass
class Config(_mixer.MixerConfig):
    """Options of S4D; sizes are taken from `size` where they are None."""

    family: str = "s4d"
    state_size: int = 64
    """N, real numbers a channel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state_size < 2 or self.state_size % 2:
            raise ValueError(f"s4d: state_size={self.state_size} must be even, its numbers are complex pairs")


class S4D(_mixer.Mixer):
    """The diagonal state space layer."""

    exact_causality = False

    def __init__(self, options: Config, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        self.states = options.state_size // 2
        self.log_dt, self.D = nn.Parameter(torch.empty(hidden_size)), nn.Parameter(torch.empty(hidden_size))
        self.log_A_real = nn.Parameter(torch.empty(hidden_size, self.states))
        self.A_imag = nn.Parameter(torch.empty(hidden_size, self.states))
        self.C = nn.Parameter(torch.empty(hidden_size, self.states, 2))
        self.out_proj = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        for parameter in (self.log_A_real, self.A_imag):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor, state: Tensor | None, keep: bool, wanted: int = 0) -> tuple[Tensor, Tensor | None]:
        """x [B, L, H]; the state is complex [B, H, N / 2]."""
        with torch.autocast(x.device.type, enabled=False):
            u = at_least_float32(x).transpose(1, 2)
            log_a, c = self._discrete()
            if u.shape[-1] == 1 and keep:
                y, state = self._step(u[..., 0], log_a, c, state)
            else:
                y, state = self._pieces(u.contiguous(), log_a, c, state, keep)
        y = F.gelu(y[..., -wanted:].transpose(1, 2).to(x.dtype))
        return F.glu(self.out_proj(y), -1), state if keep else None

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """log Ā = Δ A, and C̄; complex [H, N / 2]."""
        dt, real, imaginary, c = (at_least_float32(p) for p in (self.log_dt, self.log_A_real, self.A_imag, self.C))
        a = torch.complex(-real.exp(), imaginary)
        log_a = a * dt.exp().unsqueeze(1)
        return log_a, torch.view_as_complex(c) * torch.expm1(log_a) / a

    def _step(self, u: Tensor, log_a: Tensor, c: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """One token u [B, H]: y [B, H, 1] and the next state."""
        self.kernel_path = "torch-step"
        before = log_a.new_zeros(len(u), *log_a.shape) if state is None else log_a.exp() * state
        after = before + u.unsqueeze(-1)
        y = 2 * (c * after).real.sum(-1) + at_least_float32(self.D) * u
        return y.unsqueeze(-1), after

    def _pieces(
        self, u: Tensor, log_a: Tensor, c: Tensor, state: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """u [B, H, L] by convolution: y like u, and the next state if it is wanted."""
        self.kernel_path = "torch-fft"
        length = u.shape[-1]
        size = min(PIECE, length)
        kernel, parts = 2 * read_powers(c.unsqueeze(0), log_a, size)[0], []
        for first in range(0, length, size):
            piece = u[..., first : first + size]
            count = piece.shape[-1]
            y = fft_conv(piece, kernel[:, :count], count)
            if state is not None:
                y = y + 2 * read_powers(c * state * log_a.exp(), log_a, count)
            if keep or first + size < length:
                after = write_powers(piece, log_a)
                state = after if state is None else after + (log_a * count).exp() * state
            parts.append(y)
        return torch.cat(parts, -1) + at_least_float32(self.D).unsqueeze(-1) * u, state

    @classmethod
    def count(cls, options: Config, hidden_size: int) -> int:
        """Δ and D; per state A and C, of two numbers each; the gated projection."""
        return hidden_size * (2 + 2 * options.state_size + 2 * hidden_size)

    @classmethod
    def flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """2 a weight of the projection, per token; the kernel, 2 N a tap; the transforms of each piece.

        Between pieces 2 N a token to write the state and to read it. The state after the last, which a prefill
        wants, is left out.
        """
        size = min(PIECE, length)
        pieces = -(-length // size)
        channel = pieces * fft_flops(size, size) + 2 * options.state_size * size * (1 + 2 * (pieces - 1))
        return hidden_size * (4 * length * hidden_size + channel)

    @classmethod
    def output_flops(cls, options: Config, hidden_size: int) -> int:
        """The projection to values and gates."""
        return 4 * hidden_size * hidden_size

    @classmethod
    def step_flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """2 a weight; for each of the N / 2 complex numbers 8 to move it on and 8 to read it."""
        return 4 * hidden_size * hidden_size + 8 * options.state_size * hidden_size

    def initialise(self) -> None:
        """S4D-Lin, A_n = -1/2 + i π n (equation 9), Δ log-uniform, C from the complex normal distribution."""
        low, high = (math.log(size) for size in STEP_SIZES)
        init.uniform_(self.log_dt, low, high)
        init.ones_(self.D)
        init.constant_(self.log_A_real, math.log(0.5))
        init.copy_(self.A_imag, (math.pi * torch.arange(self.states)).expand_as(self.A_imag))
        init.normal_(self.C, std=0.5**0.5)


def read_powers(c: Tensor, log_a: Tensor, length: int) -> Tensor:
    """Re(Σ_n c_n a_n^l) for l < `length`, [B, H, length], of c [B, H, n] and log a [H, n]."""
    size = math.isqrt(length - 1) + 1
    coarse, fine = _powers(log_a, size, size), _powers(log_a, size, 1)
    left = c.unsqueeze(2) * coarse.transpose(1, 2)
    product = torch.cat([left.real, -left.imag], -1) @ torch.cat([fine.real, fine.imag], 1)
    return product.flatten(-2)[..., :length]


def write_powers(u: Tensor, log_a: Tensor) -> Tensor:
    """Σ_l a^(T - 1 - l) u_l, complex [B, H, n], of u [B, H, T] and log a [H, n]."""
    size = math.isqrt(u.shape[-1] - 1) + 1
    blocks = F.pad(u, (size * size - u.shape[-1], 0)).unflatten(-1, (size, size))
    fine = _powers(log_a, size, 1).flip(-1)
    inner = torch.complex(blocks @ fine.real.mT, blocks @ fine.imag.mT)
    return (inner * _powers(log_a, size, size).flip(-1).mT).sum(2)


def _powers(log_a: Tensor, count: int, stride: int) -> Tensor:
    """a^(j stride) for j < `count`, [H, n, count]."""
    return (log_a.unsqueeze(-1) * (torch.arange(count, device=log_a.device) * stride)).exp()


class S4DModel(MixerFamily):
    """S4D behind the common interface."""

    Config = Config
    Mixer = S4D
