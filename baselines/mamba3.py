"""Mamba-3, single-input single-output (arXiv 2603.15569), as a mixer of the shared backbone.

A head with input x_t [P], directions B_t, C_t [N] (shared by the heads, normed, with a bias of each head's own), time
step dt_t and rate A_t < 0 keeps S [P, N] by the exponential-trapezoidal rule, alpha_t = exp(dt_t A_t):

    S_t = alpha_t S_{t-1} + (1 - lambda_t) dt_t alpha_t x_{t-1} B_{t-1}^T + lambda_t dt_t x_t B_t^T
    y_t = (S_t C_t + D x_t) silu(z_t)

The state is complex: pairs of the first half of N turn by an angle a token, which is B and C turned by the running sum
of pi tanh(theta_t) dt_t. Over a sequence the two terms that write x_s B_s^T, at s and at s + 1, are one weight in
`_decayed_attention`. mamba-ssm's kernel does the same on CUDA. Not here: the multi-input form (MIMO).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from baselines import _mixer
from baselines._decayed_attention import CHUNK, attention_flops, decayed_attention
from baselines._mixer_family import MixerFamily
from baselines._precision import RMSNorm, at_least_float32

SLOWEST = 1e-4
"""The least rate |A|."""


@dataclass
class Config(_mixer.MixerConfig):
    """Options of Mamba-3; sizes are taken from `size` where they are None."""

    family: str = "mamba3"
    state_size: int = 64
    expand: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state_size < 4 or self.state_size % 4:
            raise ValueError(f"mamba3: state_size={self.state_size} must be a multiple of 4: pairs turn in half of it")
        if self.expand < 1:
            raise ValueError(f"mamba3: expand={self.expand} must be at least 1")

    def split(self, hidden_size: int) -> list[int]:
        """Columns of the in projection: z, x, B, C, and of each head dt, A, lambda; the angles."""
        inner = self.expand * hidden_size
        heads = inner // (self.head_dim or inner)
        return [inner, inner, self.state_size, self.state_size, heads, heads, heads, self.state_size // 4]


class State(NamedTuple):
    """Angles [B, heads, N / 4], S [B, heads, P, N], and the last token's turned B [B, heads, N] and x [B, heads, P]."""

    angle: Tensor
    memory: Tensor
    direction: Tensor
    value: Tensor


class Inputs(NamedTuple):
    """What a sequence of L tokens is to the recurrence, in the layouts of mamba-ssm's kernel but for the time axis.

    C, B [B, L, N] before bias and turn; x, z [B, L, heads, P]; dt, decay = dt A and trapezoid (lambda before the
    sigmoid) [B, L, heads]; angle rates [B, L, N / 4].
    """

    C: Tensor
    B: Tensor
    x: Tensor
    z: Tensor
    dt: Tensor
    decay: Tensor
    trapezoid: Tensor
    angle: Tensor


class Mamba3Mixer(_mixer.Mixer):
    """Parameters as in mamba-ssm's `Mamba3` of the same sizes, by name and shape."""

    def __init__(self, options: Config, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        self.sizes = options.split(hidden_size)
        inner, states, heads = self.sizes[0], options.state_size, self.sizes[4]
        self.in_proj = nn.Linear(hidden_size, sum(self.sizes), bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.B_bias = nn.Parameter(torch.ones(heads, 1, states))
        self.C_bias = nn.Parameter(torch.ones(heads, 1, states))
        self.B_norm, self.C_norm = RMSNorm(states, 1e-5), RMSNorm(states, 1e-5)
        self.D = nn.Parameter(torch.ones(heads))
        self.out_proj = nn.Linear(inner, hidden_size, bias=False)

    def forward(self, x: Tensor, state: State | None, keep: bool, wanted: int = 0) -> tuple[Tensor, State | None]:
        """x [B, L, H], on mamba-ssm's kernel where it can take them."""
        inputs = self._inputs(x)
        kernel = kernel_for(x)
        self.kernel_path = "torch-chunks" if kernel is None else "mamba-ssm"
        y, state = self._chunks(inputs, state) if kernel is None else self._fused(kernel, inputs, state)
        return self.out_proj(y[:, -wanted:].flatten(2).to(x.dtype)), state if keep else None

    def _inputs(self, u: Tensor) -> Inputs:
        z, x, B, C, dt, A, trapezoid, angle = self.in_proj(u).split(self.sizes, dim=-1)
        x, z = (v.unflatten(-1, (self.sizes[4], -1)) for v in (x, z))
        dt = F.softplus(at_least_float32(dt) + at_least_float32(self.dt_bias))
        rate = F.softplus(at_least_float32(A)).clamp(min=SLOWEST)
        return Inputs(self.C_norm(C), self.B_norm(B), x, z, dt, -rate * dt, trapezoid, at_least_float32(angle))

    def _chunks(self, inputs: Inputs, state: State | None) -> tuple[Tensor, State]:
        """The recurrence by chunks; y [B, L, heads, P]."""
        x, dt = at_least_float32(inputs.x), inputs.dt
        turn = (math.pi * inputs.angle.tanh().unsqueeze(2) * dt.unsqueeze(-1)).double().cumsum(1)
        turn = (turn if state is None else turn + state.angle.double().unsqueeze(1)) % (2 * math.pi)
        q, k = (
            turned(at_least_float32(v).unsqueeze(2) + at_least_float32(bias.squeeze(1)), turn.to(x.dtype))
            for v, bias in ((inputs.C, self.C_bias), (inputs.B, self.B_bias))
        )
        now = at_least_float32(inputs.trapezoid).sigmoid()
        before, own = (1 - now) * dt, now * dt
        memory = None
        if state is not None:
            written = state.value.unsqueeze(-1) * state.direction.unsqueeze(-2)
            memory = state.memory + before[:, 0, :, None, None] * written
        weight = own + F.pad(before[:, 1:], (0, 0, 0, 1))
        own = own.unsqueeze(-1) * x
        y, memory = decayed_attention(q, k, weight.unsqueeze(-1) * x, inputs.decay, memory, own)
        y = (y + at_least_float32(self.D).unsqueeze(-1) * x) * F.silu(at_least_float32(inputs.z))
        return y, State(turn[:, -1].to(x.dtype), memory, k[:, -1], x[:, -1])

    def _fused(self, kernel: Callable[..., Any], inputs: Inputs, state: State | None) -> tuple[Tensor, State]:
        """The same by mamba-ssm's `mamba3_siso_combined`, which has heads before time in dt, decay and trapezoid."""
        by_head = [v.transpose(1, 2) for v in (inputs.decay, inputs.dt, inputs.trapezoid)]
        angle = inputs.angle.unsqueeze(2).expand(-1, -1, self.sizes[4], -1)
        y, *last = kernel(
            inputs.C.unsqueeze(2), inputs.B.unsqueeze(2), inputs.x, *by_head, self.C_bias.squeeze(1),
            self.B_bias.squeeze(1), angle, self.D, inputs.z, Input_States=None if state is None else tuple(state),
            chunk_size=CHUNK, return_final_states=True,
        )  # fmt: skip
        return y, State(*last)

    @classmethod
    def count(cls, options: Config, hidden_size: int) -> int:
        """In and out projection; of each head dt bias and D, and biases of B and C; the norms of B and C."""
        inner, *_, heads, _ = sizes = options.split(hidden_size)
        return hidden_size * (sum(sizes) + inner) + 2 * heads * (1 + options.state_size) + 2 * options.state_size

    @classmethod
    def flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """Per token 2 a weight of the projections; the recurrence as `attention_flops`, B and C being each head's."""
        inner, *_, heads, _ = sizes = options.split(hidden_size)
        projections = 2 * length * hidden_size * (sum(sizes) + inner)
        return projections + attention_flops(length, heads, heads, inner // heads, options.state_size)

    @classmethod
    def output_flops(cls, options: Config, hidden_size: int) -> int:
        """The projection from all channels."""
        return 2 * options.expand * hidden_size * hidden_size

    def initialise(self) -> None:
        """As mamba-ssm: dt log-uniform in [0.001, 0.1] through the inverse of softplus; biases and D at one."""
        dt = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))
        for parameter in (self.B_bias, self.C_bias, self.D):
            init.ones_(parameter)


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """x [..., N] with its neighbours (2 i, 2 i + 1) turned by angle [..., i]; what lies beyond the angles stays."""
    pairs, rest = x[..., : 2 * angle.shape[-1]].unflatten(-1, (-1, 2)), x[..., 2 * angle.shape[-1] :]
    cos, sin = angle.cos(), angle.sin()
    first, second = pairs.unbind(-1)
    turned_pairs = torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)
    return torch.cat([turned_pairs, rest], -1)


def kernel_for(x: Tensor) -> Callable[..., Any] | None:
    """mamba-ssm's kernel if it is installed and can take `x`."""
    return _installed() if x.is_cuda and x.dtype != torch.float64 else None


@functools.cache
def _installed() -> Callable[..., Any] | None:
    try:
        from mamba_ssm.ops.triton.mamba3.mamba3_siso_combined import mamba3_siso_combined
    except ImportError:
        return None
    return mamba3_siso_combined


class Mamba3(MixerFamily):
    """Mamba-3 behind the common interface."""

    Config = Config
    Mixer = Mamba3Mixer
