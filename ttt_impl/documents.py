"""What a batch says about its rows: padding on the left, documents packed one after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def left_padding(attention_mask: Tensor | None, length: int, positions: Sequence[int]) -> Tensor | None:
    """Padding [B, L] of the chunk whose last columns `attention_mask` [B, >= L] describes; None if there is none."""
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2 or attention_mask.shape[1] < length:
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} for {length} tokens; "
            "valid choices: [B, L] or [B, past + L], 0 at padding"
        )
    padding = attention_mask[:, -length:] == 0
    if not bool(padding.any()):
        return None
    begun = torch.tensor([p > 0 for p in positions], device=padding.device)[:, None]
    before = torch.cat([~begun, padding[:, :-1]], 1)
    if bool((padding & ~before).any()):
        raise ValueError(
            "attention_mask has padding on the right of a token; valid choices: padding on the left "
            "(tokenizer.padding_side='left'), or no mask, since no token sees what lies to its right"
        )
    return padding


def document_starts(
    cu_seqlens: Tensor | None, position_ids: Tensor | None, like: Tensor, occupied: bool
) -> Tensor | None:
    """First tokens of packed documents, [B, L] as `like` [B, L, ...]; None where rows are single sequences.

    `cu_seqlens` [documents + 1] cuts the only row of a batch; `position_ids` [B, L] cut wherever they are 0. A cache
    or an attention mask (`occupied`) keeps its own positions, then position_ids say nothing new.
    """
    batch, length = like.shape[:2]
    if cu_seqlens is not None:
        borders = cu_seqlens.tolist()
        if batch != 1 or occupied or borders[0] != 0 or borders[-1] != length or borders != sorted(set(borders)):
            raise ValueError(
                f"cu_seqlens={borders} for input of shape {(batch, length)}; valid choices: rising borders from 0 "
                f"to {length} for one packed row, without cache and attention_mask"
            )
        starts = torch.zeros(1, length, dtype=torch.bool, device=like.device)
        starts[0, borders[:-1]] = True
        return starts
    if position_ids is None or occupied:
        return None
    starts = (position_ids == 0).expand(batch, length)
    steps = position_ids[..., 1:] - position_ids[..., :-1]
    if not bool((starts[..., 1:] | (steps == 1)).all()) or not bool(starts[:, 0].all()):
        raise ValueError("position_ids must begin with 0 and count up by 1, beginning again at 0 with each document")
    return None if not bool(starts[:, 1:].any()) else starts
