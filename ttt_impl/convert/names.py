"""From the names and layouts of the JAX release to those of the official PyTorch code.

A flax `Dense` multiplies from the right with a kernel [in, out]; a PyTorch `Linear` stores [out, in]. A flax
`Conv` kernel is [width, 1, channels], a `Conv1d` weight [channels, 1, width]; neither flips it. The inner weights W1
and W2 keep their layout: both codes multiply them from the right. (ttt-lm-jax @ 6f529b1 `ttt/models/`,
ttt-lm-pytorch @ cd831db `ttt.py`, and the authors' conversion gist xvjiarui/835bab0a867cd1f4a20714a5f860abfd.)
"""

import re

from ttt_impl.convert.errors import CheckpointError

Axes = tuple[int, ...]

MATRIX: Axes = (1, 0)
CONV: Axes = (2, 1, 0)
PER_HEAD: Axes = (0, 2, 1)

_TOP: dict[str, tuple[str, Axes]] = {
    "model/wte/embedding": ("model.embed_tokens.weight", ()),
    "model/ln_f/kernel": ("model.norm.weight", ()),
    "lm_head/kernel": ("lm_head.weight", MATRIX),
}
_LAYER: dict[str, tuple[str, Axes]] = {
    "conv/conv1/kernel": ("conv.conv.weight", CONV),
    "conv/conv1/bias": ("conv.conv.bias", ()),
    "conv/conv_norm/kernel": ("conv.norm.weight", ()),
    "seq_norm/kernel": ("seq_norm.weight", ()),
    "ffn_norm/kernel": ("ffn_norm.weight", ()),
    "feed_forward/w1/kernel": ("mlp.gate_proj.weight", MATRIX),
    "feed_forward/w2/kernel": ("mlp.down_proj.weight", MATRIX),
    "feed_forward/w3/kernel": ("mlp.up_proj.weight", MATRIX),
}
_BLOCK: dict[str, tuple[str, Axes]] = {
    "wq/kernel": ("q_proj.weight", MATRIX),
    "wk/kernel": ("k_proj.weight", MATRIX),
    "wv/kernel": ("v_proj.weight", MATRIX),
    "wo/kernel": ("o_proj.weight", MATRIX),
    "wg/kernel": ("g_proj.weight", MATRIX),
    "conv_q/kernel": ("conv_q.weight", CONV),
    "conv_q/bias": ("conv_q.bias", ()),
    "conv_k/kernel": ("conv_k.weight", CONV),
    "conv_k/bias": ("conv_k.bias", ()),
    "learnable_ttt_lr/kernel": ("learnable_ttt_lr_weight", PER_HEAD),
    "learnable_ttt_lr/bias": ("learnable_ttt_lr_bias", ()),
    "learnable_token_idx": ("learnable_token_idx", ()),
    "ttt_norm/scale": ("ttt_norm_weight", ()),
    "ttt_norm/bias": ("ttt_norm_bias", ()),
    "post_norm/scale": ("post_norm.weight", ()),
    "post_norm/bias": ("post_norm.bias", ()),
}
_LAYER |= {f"seq_modeling_block/{jax}": (f"seq_modeling_block.{name}", axes) for jax, (name, axes) in _BLOCK.items()}


def torch_name(name: str) -> tuple[str, Axes]:
    """Map a JAX name to (PyTorch name, axes for `permute`); no axes where the layout is kept."""
    if name in _TOP:
        return _TOP[name]
    if layer := re.fullmatch(r"model/h/(\d+)/(.+)", name):
        number, rest = layer.groups()
        prefix = f"model.layers.{number}."
        if rest in _LAYER:
            return prefix + _LAYER[rest][0], _LAYER[rest][1]
        if inner := re.fullmatch(r"seq_modeling_block/ttt_(dense|bias)_(\d+)", rest):
            letter = {"dense": "W", "bias": "b"}[inner[1]]
            return f"{prefix}seq_modeling_block.{letter}{int(inner[2]) + 1}", ()
    raise CheckpointError(f"unexpected parameter {name}: no TTT model of the JAX release has it")


def permuted(shape: tuple[int, ...], axes: Axes, name: str) -> tuple[int, ...]:
    """Return the shape after `permute(axes)`."""
    if axes and len(axes) != len(shape):
        raise CheckpointError(f"parameter {name} has shape {list(shape)}, expected {len(axes)} dimensions")
    return tuple(shape[axis] for axis in axes) if axes else shape
