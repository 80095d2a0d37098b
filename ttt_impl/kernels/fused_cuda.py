"""The path 'fused-cuda' of `ops.py`: whether a call fits the kernels, and the call itself; `choice.py` decides.

State goes in and out in the form that all paths share (`../state.py`), so a sequence may change path at any token.
"""

import torch
from torch import Tensor

from ttt_impl.kernels.arguments import ALIGNMENT, KERNELS, TOKENS
from ttt_impl.kernels.operators import linear_decode, linear_forward
from ttt_impl.kernels.operators_mlp import backward_kernel, mlp_decode, mlp_forward
from ttt_impl.layout import Layout
from ttt_impl.learner import PUBLISHED, Inputs, Learner, Weights
from ttt_impl.state import FastWeights, fold, with_hidden

PATH = "fused-cuda"


def misfit(
    kind: str, inputs: Inputs, learner: Learner, layout: Layout, state: FastWeights | None, keep_state: bool,
    record: int, differentiated: bool,
) -> str | None:  # fmt: skip
    """Why the kernels do not compute this, whatever the device, in one line; None: they do.

    q, k and v have to be bf16: a float32 model is not rounded behind its back. Without gradients a call may continue
    an open mini-batch; with gradients it starts at a mini-batch's first token.
    """
    q, packed, widths = inputs.q, layout.age is not None, KERNELS[f"ttt_{kind}_fwd"].widths
    wrong = next((x.dtype for x in inputs[:3] if x.dtype != torch.bfloat16), None)
    if wrong is not None:
        return f"tokens are {wrong}; valid choices: torch.bfloat16, as a bf16 model or autocast makes them"
    if learner != PUBLISHED:
        return "the learner leaves out LN, residual or bias; valid choices: the published one"
    if layout.size != TOKENS:
        return f"mini-batches of {layout.size} tokens; valid choices: {TOKENS}"
    if q.shape[3] not in widths:
        return f"head dimension {q.shape[3]}; valid choices: {', '.join(map(str, widths))}"
    if record:
        return "the cache can be rewound; valid choices: TTTCache(config, rewind=0)"
    if packed and (keep_state or state is not None):
        return "packed documents with a state; valid choices: one of the two"
    if differentiated and layout.taken is not None:
        return "gradients through a mini-batch already open; valid choices: to start at a mini-batch's first token"
    return None if q.numel() else "no tokens; valid choices: at least one"


def run(
    kind: str, inputs: Inputs, weights: Weights, layout: Layout, state: FastWeights | None, keep_state: bool,
    differentiated: bool,
) -> tuple[Tensor, FastWeights | None]:  # fmt: skip
    """Output [B, H, L, f] in bf16 and, if wanted, the state after it.

    As in `step.py`, a state given without gradients is used up: decoding writes into its rows and weights.
    """
    batch, heads = inputs.q.shape[:2]
    q, k, v = (x.transpose(1, 2) for x in inputs[:3])
    tokens = (q, k, v, *(x.float() for x in inputs[3:]))
    if state is not None and layout.fits_open and not differentiated:
        count, state = _count(layout, batch, heads, q.device), state.each(_writable)
        decode = linear_decode if kind == "linear" else mlp_decode
        out = decode(*tokens, *state.weights, *state.rows, count, None)
        return out.transpose(1, 2), state
    segments = _segments(layout, batch, q.device)
    if state is None:
        start = fold(tuple(w.float() for w in weights), batch if segments is None else len(segments), True)
        held: tuple[Tensor | None, Tensor | None] = (None, None)
    else:
        start, held = state.weights, (state.rows[0], state.gradients[-1])
    mini_batches = 0 if segments is None else batch * layout.count
    forward = linear_forward if kind == "linear" else mlp_forward
    out, *rest = forward(*tokens, *start, *held, segments, mini_batches, differentiated)
    end, rows = rest[: len(start)], rest[len(start) : 2 * len(start) + 1]
    after = with_hidden(tuple(w.detach() for w in end), tuple(rows)) if keep_state else None
    return out.transpose(1, 2), after


def needed(kind: str, q: Tensor, layout: Layout, state: FastWeights | None, differentiated: bool) -> list[str]:
    """Kernels that `run` may launch."""
    if state is not None and layout.fits_open and not differentiated:
        return [f"ttt_{kind}_decode"]
    forward = [name for name in KERNELS if name.startswith(f"ttt_{kind}_fwd") and q.shape[3] in KERNELS[name].widths]
    backward = "ttt_linear_bwd" if kind == "linear" else backward_kernel(q.device)
    return forward + [backward] * differentiated


def _writable(x: Tensor) -> Tensor:
    """The same where a kernel can change it in place, a copy where it cannot."""
    return x if x.is_contiguous() and x.data_ptr() % ALIGNMENT == 0 else x.clone(memory_format=torch.contiguous_format)


def _count(layout: Layout, batch: int, heads: int, device: torch.device) -> Tensor:
    """Rows taken of each head's open mini-batch, [B * H]; what the device has counted stays on it."""
    if layout.taken is None:
        return torch.zeros(batch * heads, dtype=torch.int32, device=device)
    return layout.taken.int().repeat_interleave(heads)


def _segments(layout: Layout, batch: int, device: torch.device) -> Tensor | None:
    """The table of segments [S, 5] (row, first token, tokens, slots taken, mini-batches before); None: plain rows."""
    if layout.age is not None:
        row, begin = (layout.age == 0).nonzero().unbind(1)
        position = row * layout.length + begin
        end = torch.cat([position[1:], position.new_full((1,), batch * layout.length)])
        tokens, taken = end - position, torch.zeros_like(row)
    elif layout.padding is not None or layout.taken is not None:
        row = torch.arange(batch, device=device)
        taken = torch.zeros_like(row) if layout.taken is None else layout.taken
        begin = torch.zeros_like(row) if layout.padding is None else layout.padding.sum(1)
        tokens = layout.length - begin
    else:
        return None
    count = (taken + tokens + TOKENS - 1) // TOKENS
    return torch.stack([row, begin, tokens, taken, count.cumsum(0) - count], 1).int()
