"""Small checkpoints of either kind, and the ways community conversions are stored."""

import torch
from safetensors.torch import save_file

from tests.ttt_impl.convert.streaming_writer import model_shapes, random_params, write

DIMENSIONS = {"vocab": 19, "width": 16, "heads": 2, "inter": 24, "layers": 2}
CONFIG = {
    "vocab_size": 19,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "use_gate": True,
    "share_qk": True,
    "pre_conv": True,
}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def jax_file(tmp_path, learner="linear", **kwargs):
    return write(tmp_path / "streaming_train_state", random_params(model_shapes(learner, **DIMENSIONS, **kwargs)))


def save_safetensors(folder, state):
    save_file(state, folder / "model.safetensors")


def save_shards(folder, state):
    names = sorted(state)
    save_file({name: state[name] for name in names[:20]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: state[name] for name in names[20:]}, folder / "model-00002-of-00002.safetensors")


def save_bin(folder, state):
    torch.save(state, folder / "pytorch_model.bin")


def save_old_bin(folder, state):
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
