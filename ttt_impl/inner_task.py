"""What the inner loop learns to predict: the pairs (input, label) of its loss, and when a pair counts.

For token t with hidden state u_t (after the block's norm), heads apart, f the learner, K the mini-batch size:

    multi_view       l_t(W) = 1/2 || f(K_t; W) - V_t ||^2          learned training and label views (paper, Eq. 4)
    reconstruction   l_t(W) = 1/2 || f(K_t; W) - u_t ||^2          the token itself is the label (paper, Eq. 2-3); each
                                                                   head restores its own f channels, no V projection
    next_token       l_t(W) = 1/2 || f(K_(t-1); W) - V_t ||^2      the key at t - 1 predicts the value at t

The update of l_t becomes visible in the output of token t, under all three: everything in l_t is known once token t
is read. For next_token this means that the pair (t - 1, t) joins the mini-batch of token t, takes the learning rate
of t, and is rotated as place t mod K on both sides. The first token of a document ends no pair: its loss is masked by
learning rate zero, it only reads. With the residual in f, targets are V_t - K_t, u_t - K_t and V_t - K_(t-1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InnerTask:
    """How labels and inputs are paired."""

    learned_label: bool
    """Label V_t = theta_V u_t rather than u_t."""
    delay: int
    """How many tokens the input lies before its label."""


TASKS = {
    "multi_view": InnerTask(learned_label=True, delay=0),
    "reconstruction": InnerTask(learned_label=False, delay=0),
    "next_token": InnerTask(learned_label=True, delay=1),
}


def delayed(k: Tensor, past: Tensor | None) -> Tensor:
    """The key one token before, [B, L, C]; `past` [B, 1, C] is the one before the chunk (None: zero, never used)."""
    before = torch.zeros_like(k[:, :1]) if past is None else past
    return torch.cat([before, k[:, :-1]], 1)
