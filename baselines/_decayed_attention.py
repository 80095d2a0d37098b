"""Linear attention whose memory fades by one factor a head and token: what Mamba-2 and Mamba-3 both are inside.

A head reads and writes a matrix S [P, N] (Dao & Gu, arXiv 2405.21060, equation 16 and section 6, "SSD"):

    S_t = exp(a_t) S_{t-1} + v_t k_t^T        y_t = S_t q_t

Within a chunk that is masked attention, y_t = sum_{s <= t} exp(a_{s+1} + … + a_t) (q_t · k_s) v_s, all matrix products;
from chunk to chunk the matrix is carried on. A step is a chunk of one token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64


def decayed_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y [B, L, H, P] and the last S [B, H, P, N]; no [L, L] and no [L, N, P] tensor is made.

    q, k [B, L, G, N] serve H / G heads each; v [B, L, H, P]; log_decay [B, L, H] <= 0. `own` [B, L, H, P] takes the
    place of v where a token reads itself, s = t; later tokens still read v.
    """
    with torch.autocast(v.device.type, enabled=False):
        return _attend(q, k, v, log_decay, state, own)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    (batch, length, heads, width), (groups, states) = v.shape, q.shape[2:]
    size = min(CHUNK, length)
    q, k = (_chunks(x, size).transpose(2, 3).unsqueeze(3) for x in (q, k))
    v, a = _by_group(_chunks(v, size), groups), _by_group(_chunks(log_decay.unsqueeze(-1), size), groups).squeeze(-1)
    total = a.cumsum(-1)
    scores = (q @ k.mT) * _decay(total)
    y = scores @ v if own is None else _with_own(scores, q, k, v, _by_group(_chunks(own, size), groups))
    end = total[..., -1:]
    written = (v * (end - total).exp().unsqueeze(-1)).mT @ k
    if state is None:
        state = v.new_zeros(batch, heads, width, states)
    S, kept, before = state.unflatten(1, (groups, -1)).to(v.dtype), end.exp().unsqueeze(-1), []
    for kept_c, written_c in zip(kept.unbind(1), written.unbind(1), strict=True):
        before.append(S)
        S = kept_c * S + written_c
    y = y + total.exp().unsqueeze(-1) * (q @ torch.stack(before, 1).mT)
    return y.flatten(2, 3).transpose(2, 3).flatten(1, 2)[:, :length], S.flatten(1, 2)


def attention_flops(length: int, groups: int, heads: int, width: int, states: int) -> int:
    """Of `length` tokens: 2 a multiply-add of scores, values, writing and reading S; whole chunks, as computed.

    The decays and other elementwise work add some percent, and are left out.
    """
    size = min(CHUNK, length)
    padded = -(-length // size) * size
    return 2 * padded * (size * (groups * states + heads * width) + 2 * heads * width * states)


def _chunks(x: Tensor, size: int) -> Tensor:
    """[B, L, …] -> [B, chunks, size, …], zeros at the end."""
    missing = -x.shape[1] % size
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)).unflatten(1, (-1, size))


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[B, chunks, size, H, P] -> [B, chunks, G, H / G, size, P]."""
    return x.transpose(2, 3).unflatten(2, (groups, -1))


def _decay(total: Tensor) -> Tensor:
    """exp(total_t - total_s) where s <= t, else 0: [..., size] -> [..., size, size]."""
    size = total.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=total.device).triu(1)
    return (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(later, -torch.inf).exp()


def _with_own(scores: Tensor, q: Tensor, k: Tensor, v: Tensor, own: Tensor) -> Tensor:
    return scores.tril(-1) @ v + (q * k).sum(-1, keepdim=True) * own
