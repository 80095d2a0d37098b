"""The path 'fused-cuda' of `ops.py`: whether a call fits the kernels, and the call itself.

State goes in and out in the form that all paths share (`../state.py`), so a sequence may change path at any token.
"""

import torch
from torch import Tensor

from ttt_impl.kernels import loader
from ttt_impl.kernels.arguments import KERNELS, TOKENS
from ttt_impl.kernels.operators import linear_decode, linear_forward
from ttt_impl.layout import Layout
from ttt_impl.learner import PUBLISHED, Inputs, Learner, Weights
from ttt_impl.state import FastWeights, fold

PATH = "fused-cuda"


def supports(
    kind: str, inputs: Inputs, learner: Learner, layout: Layout, state: FastWeights | None, keep_state: bool,
    record: int, differentiated: bool,
) -> bool:  # fmt: skip
    """Whether `run` can take the call; compiles the kernels that it needs at their first use.

    q, k and v have to be bf16: a float32 model is not rounded behind its back. Without gradients a call may continue
    an open mini-batch; with gradients it starts at a mini-batch's first token.
    """
    if not fits(kind, inputs, learner, layout, state, keep_state, record, differentiated):
        return False
    q = inputs.q
    return q.device.type == "cuda" and all(
        loader.ready(name, q.shape[3], q.device) for name in _needed(q, layout, state, differentiated)
    )


def fits(
    kind: str, inputs: Inputs, learner: Learner, layout: Layout, state: FastWeights | None, keep_state: bool,
    record: int, differentiated: bool,
) -> bool:  # fmt: skip
    """Whether the kernels compute this at all, whatever the device."""
    q, packed = inputs.q, layout.age is not None
    published = kind == "linear" and learner == PUBLISHED and layout.size == TOKENS
    types = all(x.dtype == torch.bfloat16 for x in inputs[:3]) and q.shape[3] in KERNELS["ttt_linear_fwd"].widths
    whole = not (packed and (keep_state or state is not None)) and not (differentiated and any(layout.fill))
    return published and types and whole and not record and q.numel() > 0


def run(
    inputs: Inputs, weights: Weights, layout: Layout, state: FastWeights | None, keep_state: bool, differentiated: bool
) -> tuple[Tensor, FastWeights | None]:
    """Output [B, H, L, f] in bf16 and, if wanted, the state after it.

    As in `step.py`, a state given without gradients is used up: decoding writes into its rows and weights.
    """
    batch, heads = inputs.q.shape[:2]
    q, k, v = (x.transpose(1, 2) for x in inputs[:3])
    lr, tok, gamma, beta = (x.float() for x in inputs[3:])
    if state is not None and layout.fits_open and not differentiated:
        count = _count(layout, batch, heads, q.device)
        out = linear_decode(q, k, v, lr, tok, gamma, beta, *state.weights, *state.rows, count, None)
        return out.transpose(1, 2), state
    segments = _segments(layout, batch, q.device)
    if state is None:
        start = fold(tuple(w.float() for w in weights), batch if segments is None else len(segments), True)[0]
        keys = ghat = None
    else:
        (start,), (keys, ghat) = state
    mini_batches = 0 if segments is None else batch * layout.count
    out, end, end_keys, end_ghat, _, _ = linear_forward(
        q, k, v, lr, tok, gamma, beta, start, keys, ghat, segments, mini_batches, differentiated
    )
    after = FastWeights((end.detach(),), (end_keys, end_ghat)) if keep_state else None
    return out.transpose(1, 2), after


def _needed(q: Tensor, layout: Layout, state: FastWeights | None, differentiated: bool) -> list[str]:
    if state is not None and layout.fits_open and not differentiated:
        return ["ttt_linear_decode"]
    forward = [name for name in ("ttt_linear_fwd", "ttt_linear_fwd_wide") if q.shape[3] in KERNELS[name].widths]
    return forward + ["ttt_linear_bwd"] * differentiated


def _count(layout: Layout, batch: int, heads: int, device: torch.device) -> Tensor:
    """Rows taken of each head's open mini-batch, [B * H]."""
    fill = layout.fill or (0,)
    count = torch.tensor(fill, dtype=torch.int32, device=device)
    return count.repeat(batch // len(fill)).repeat_interleave(heads)


def _segments(layout: Layout, batch: int, device: torch.device) -> Tensor | None:
    """The table of segments [S, 5] (row, first token, tokens, slots taken, mini-batches before); None: plain rows."""
    if layout.age is not None:
        row, begin = (layout.age == 0).nonzero().unbind(1)
        position = row * layout.length + begin
        end = torch.cat([position[1:], position.new_full((1,), batch * layout.length)])
        tokens, taken = end - position, torch.zeros_like(row)
    elif layout.padding is not None or any(layout.fill):
        row = torch.arange(batch, device=device)
        taken = torch.tensor(layout.fill, device=device)
        begin = torch.zeros_like(row) if layout.padding is None else layout.padding.sum(1)
        tokens = layout.length - begin
    else:
        return None
    count = (taken + tokens + TOKENS - 1) // TOKENS
    return torch.stack([row, begin, tokens, taken, count.cumsum(0) - count], 1).int()
