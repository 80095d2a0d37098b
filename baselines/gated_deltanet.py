"""Gated DeltaNet (Yang et al., arXiv 2412.06464): a memory that corrects what it holds before it adds to it.

Each head keeps S [f, f], forgets by alpha_t, and writes under k_t what v_t differs from what is already read there
(equation 10):

    u_t = beta_t (v_t - alpha_t S_{t-1} k_t)        S_t = alpha_t S_{t-1} + u_t k_t^T        y_t = S_t q_t

Within a chunk the u_t solve a unit lower triangular system (the WY form, section 3.3), with g_t the product of the
alphas so far: (I + A) U = diag(beta) (V - diag(g) K S^T), A_ts = beta_t (g_t / g_s) k_t · k_s for s < t. It is solved
for all chunks at once; only the part that S feeds in goes from chunk to chunk. A step is a chunk of one token.
Around it, as there: short convolutions and SiLU on q, k, v, unit q and k, a gated norm on the output.
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
from baselines._mixer_family import MixerFamily
from baselines._precision import RMSNorm, at_least_float32

CHUNK = 64
KERNEL = 4


@dataclass
class Config(_mixer.MixerConfig):
    """Options of Gated DeltaNet; sizes are taken from `size` where they are None."""

    family: str = "gated_deltanet"


class State(NamedTuple):
    """S [B, heads, f, f] and the last inputs of the convolution [B, K - 1, 3 H]."""

    memory: Tensor
    window: Tensor


class GatedDeltaRule(_mixer.Mixer):
    """The rule with its projections, convolution, decay and gate."""

    kernel_path = "torch-chunks"

    def __init__(self, options: Config, hidden_size: int) -> None:
        super().__init__(options, hidden_size)
        assert options.head_dim is not None
        self.heads = hidden_size // options.head_dim
        self.qkv_proj = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.qkv_conv = nn.Conv1d(3 * hidden_size, 3 * hidden_size, KERNEL, groups=3 * hidden_size)
        self.decay_proj, self.beta_proj = (nn.Linear(hidden_size, self.heads, bias=False) for _ in range(2))
        self.A_log, self.dt_bias = (nn.Parameter(torch.zeros(self.heads)) for _ in range(2))
        self.gate_proj, self.o_proj = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(2))
        self.norm = RMSNorm(options.head_dim, 1e-5)

    def forward(self, x: Tensor, state: State | None, keep: bool, wanted: int = 0) -> tuple[Tensor, State | None]:
        """x [B, L, H]."""
        projected = self.qkv_proj(x)
        past = projected.new_zeros(len(x), KERNEL - 1, projected.shape[-1]) if state is None else state.window
        window = torch.cat([past.to(projected.dtype), projected], 1)
        assert self.qkv_conv.bias is not None
        weights = at_least_float32(self.qkv_conv.weight), at_least_float32(self.qkv_conv.bias)
        convolved = F.silu(causal_conv(at_least_float32(window), *weights))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in convolved.chunk(3, dim=-1))
        dt = F.softplus(at_least_float32(self.decay_proj(x)) + at_least_float32(self.dt_bias))
        log_decay = (-at_least_float32(self.A_log).exp() * dt).mT
        beta = at_least_float32(self.beta_proj(x)).sigmoid().mT
        q = unit(q) * q.shape[-1] ** -0.5
        y, memory = gated_delta_rule(q, unit(k), v, beta, log_decay, None if state is None else state.memory)
        y = self.norm(y[:, :, -wanted:].transpose(1, 2).to(x.dtype)).flatten(2)
        y = self.o_proj(y * F.silu(self.gate_proj(x[:, -wanted:])))
        return y, State(memory, window[:, x.shape[1] :]) if keep else None

    @classmethod
    def count(cls, options: Config, hidden_size: int) -> int:
        """q, k, v, gate and output projections; convolution with bias; of each head decay, beta, A and dt; the norm."""
        assert options.head_dim is not None
        per_head = 2 * hidden_size + 2
        convolution = 3 * hidden_size * (KERNEL + 1)
        return 5 * hidden_size**2 + convolution + hidden_size // options.head_dim * per_head + options.head_dim

    @classmethod
    def flops(cls, options: Config, hidden_size: int, length: int) -> int:
        """Per token 2 a weight; 8 C H for scores, the triangular system and values of a chunk; 6 f H around S."""
        assert options.head_dim is not None
        chunk = min(CHUNK, length)
        tokens = -(-length // chunk) * chunk
        weights = 5 * hidden_size**2 + 3 * hidden_size * KERNEL + 2 * hidden_size * (hidden_size // options.head_dim)
        return 2 * length * weights + tokens * hidden_size * (8 * chunk + 6 * options.head_dim)

    @classmethod
    def output_flops(cls, options: Config, hidden_size: int) -> int:
        """Gate and projection."""
        return 4 * hidden_size**2

    def initialise(self) -> None:
        """As Mamba-2, whose decay this is: A uniform in [1, 16], dt log-uniform in [0.001, 0.1]."""
        init.copy_(self.A_log, torch.empty_like(self.A_log).uniform_(1, 16).log())
        dt = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))


def unit(x: Tensor) -> Tensor:
    """x [..., f] of length one."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y [B, heads, L, f] and the last S [B, heads, f, f] of q, k, v [B, heads, L, f], beta, log_decay [B, heads, L]."""
    with torch.autocast(v.device.type, enabled=False):
        length = v.shape[2]
        q, k, v, beta, a = (_chunks(x) for x in (q, k, v, beta.unsqueeze(-1), log_decay.unsqueeze(-1)))
        total = a.cumsum(-2)
        size = total.shape[-2]
        later = torch.ones(size, size, dtype=torch.bool, device=v.device).triu(1)
        decay = (total - total.mT).masked_fill(later, -torch.inf).exp()
        system = (beta * (k @ k.mT) * decay).tril(-1)
        right = torch.cat([beta * v, beta * total.exp() * k], -1)
        solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        u, fed = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
        end = total[..., -1:, :]
        written = k * (end - total).exp()
        S = v.new_zeros(*v.shape[:2], v.shape[-1], k.shape[-1]) if state is None else state.to(v.dtype)
        before, corrected = [], []
        for u_c, fed_c, written_c, kept_c in zip(*(x.unbind(2) for x in (u, fed, written, end.exp())), strict=True):
            before.append(S)
            corrected.append(u_c - fed_c @ S.mT)
            S = kept_c * S + corrected[-1].mT @ written_c
        y = total.exp() * (q @ torch.stack(before, 2).mT) + (q @ k.mT * decay) @ torch.stack(corrected, 2)
        return y.flatten(2, 3)[:, :, :length], S


def _chunks(x: Tensor) -> Tensor:
    """[B, heads, L, f] -> [B, heads, n, C, f], zeros where the last chunk is not full: they write nothing."""
    chunk = min(CHUNK, x.shape[2])
    return F.pad(x, (0, 0, 0, -x.shape[2] % chunk)).unflatten(2, (-1, chunk))


class GatedDeltaNet(MixerFamily):
    """Gated DeltaNet behind the common interface."""

    Config = Config
    Mixer = GatedDeltaRule
