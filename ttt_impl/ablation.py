"""The rows of the paper's ablation (Table 1: 125M, Pile, context 2048) as changes to a configuration.

The ladder leads from linear attention to TTT-Linear, each row adding to the one above. Its first row *is* linear
attention: with f linear and W0 = 0, one gradient step on all tokens at once, rate 1 on 1/2 ||.||^2 and no LN, bias or
residual, the updates are v_j k_j^T and the output is sum_(j <= i) (q_i . k_j) v_j (Theorem 1).

The table does not say which fixed rate the rows between have. Here it is 1 while the loss is that of Theorem 1, and
base_lr / f = 1 / f with the LN, the rate that the learned gate scales later.
"""

from typing import Any

from ttt_impl.configuration import BACKBONES


def ablation_ladder(length: int, head_dim: int) -> dict[str, dict[str, Any]]:
    """Row name -> keyword arguments of `TTTConfig`, for sequences of `length` tokens and heads of `head_dim`."""
    row: dict[str, Any] = BACKBONES["transformer"] | {
        "ttt_layer_type": "linear",
        "mini_batch_size": length,
        "ttt_base_lr": float(head_dim),
        "learnable_w0": False,
        "learnable_eta": False,
        "token_rate": "constant",
        "inner_norm": False,
        "inner_residual": False,
        "inner_bias": False,
    }
    steps: dict[str, dict[str, Any]] = {
        "linear_attention": {},
        "learnable_w0": {"learnable_w0": True, "inner_bias": True},
        "norm_and_residual": {"inner_norm": True, "inner_residual": True, "ttt_base_lr": 1.0},
        "mini_batch": {"mini_batch_size": 16},
        "learnable_eta": {"learnable_eta": True, "token_rate": "decay"},
        "mamba_backbone": BACKBONES["mamba"],
    }
    ladder: dict[str, dict[str, Any]] = {}
    for name, change in steps.items():
        row = row | change
        ladder[name] = row
    return ladder
