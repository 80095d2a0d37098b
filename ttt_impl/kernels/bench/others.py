"""Layers of other packages, each over as many tokens and channels; imported where they are asked for."""

from collections.abc import Callable

import torch
from torch import Tensor

from ttt_impl.kernels.bench.work import Work

Call = Callable[[], object]
STATE = 16
"""Numbers that Mamba remembers a channel (arXiv 2312.00752)."""


def mamba(work: Work, device: torch.device) -> Call:
    """The selective scan of Mamba-1 over channels C = H f, without its projections."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    except ImportError as error:
        raise ImportError(f"needs mamba-ssm, pip install 'ttt-bench[cuda]': {error}") from None
    channels, batch = work.heads * work.width, work.batch

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    a, d = -torch.rand(channels, STATE, device=device), torch.ones(channels, device=device)
    if work.task == "decode":
        state = normal(batch, channels, STATE, dtype=torch.float32)
        token, delta, b, c = (normal(batch, n) for n in (channels, channels, STATE, STATE))
        return lambda: selective_state_update(state, token, delta, a, b, c, d, dt_softplus=True)
    u, delta = (normal(batch, channels, work.length) for _ in range(2))
    b, c = (normal(batch, STATE, work.length) for _ in range(2))
    if work.task == "forward":
        return lambda: selective_scan_fn(u, delta, a, b, c, d, delta_softplus=True)
    leaves = [x.requires_grad_() for x in (u, delta, b, c)]
    upstream = torch.ones_like(u)
    return lambda: torch.autograd.grad(
        selective_scan_fn(leaves[0], leaves[1], a, leaves[2], leaves[3], d, delta_softplus=True), leaves, upstream
    )


def fla(work: Work, device: torch.device) -> Call:
    """flash-linear-attention's operator: a rate a token instead of the paper's, and an output of its own."""
    if work.learner != "linear" or work.task == "decode":
        raise ImportError("fla has TTT-Linear over sequences only")
    try:
        from fla.ops.ttt import fused_chunk_ttt_linear
    except ImportError as error:
        raise ImportError(f"needs flash-linear-attention: {error}") from None

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    q, k, v = (normal(work.batch, work.length, work.heads, work.width) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    eta = 0.01 * torch.rand(work.batch, work.length, work.heads, 1, device=device, dtype=torch.bfloat16)
    w, b = (normal(work.heads, work.width) for _ in range(2))
    if work.task == "forward":
        return lambda: fused_chunk_ttt_linear(q, k, v, w, b, eta, chunk_size=16)[0]
    leaves = [x.requires_grad_() for x in (q, k, v, w, b, eta)]
    upstream = torch.ones_like(q)
    return lambda: torch.autograd.grad(fused_chunk_ttt_linear(*leaves, chunk_size=16)[0], leaves, upstream)
