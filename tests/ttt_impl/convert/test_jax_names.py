"""JAX names and layouts against what flax computes with them, and official sizes from shapes alone."""

import math

import pytest
import torch

from tests.ttt_impl.convert.streaming_writer import model_shapes, random_params, write, write_holes
from ttt_impl.configuration import SIZES, TTTConfig
from ttt_impl.convert import CheckpointError
from ttt_impl.convert.infer import infer_config, size_name
from ttt_impl.convert.names import torch_name
from ttt_impl.convert.sources import open_source

DIMENSIONS = {"vocab": 11, "width": 8, "heads": 2, "inter": 12, "layers": 1}
BLOCK = "model.layers.0.seq_modeling_block."


@pytest.fixture
def jax_and_torch(tmp_path):
    """The same random weights under (JAX path) and (PyTorch name)."""
    params = random_params(model_shapes("mlp", **DIMENSIONS, tied=False), torch.float32)
    source = open_source(write(tmp_path / "streaming_train_state", params))
    with source.handle:
        return {"/".join(path): value for path, value in params.items()}, {n: source.read(n) for n in source.shapes}


@pytest.mark.parametrize(
    ("jax", "name"),
    [
        ("seq_modeling_block/wq", "seq_modeling_block.q_proj"),
        ("seq_modeling_block/wv", "seq_modeling_block.v_proj"),
        ("seq_modeling_block/wo", "seq_modeling_block.o_proj"),
        ("seq_modeling_block/wg", "seq_modeling_block.g_proj"),
        ("feed_forward/w1", "mlp.gate_proj"),
        ("feed_forward/w3", "mlp.up_proj"),
        ("feed_forward/w2", "mlp.down_proj"),
    ],
)
def test_dense_multiplies_alike(jax_and_torch, jax, name):
    """flax Dense: y = x @ kernel."""
    params, state = jax_and_torch
    kernel = params[f"model/h/0/{jax}/kernel"]
    x = torch.randn(5, kernel.shape[0])
    torch.testing.assert_close(torch.nn.functional.linear(x, state[f"model.layers.0.{name}.weight"]), x @ kernel)


@pytest.mark.parametrize(
    ("jax", "name"),
    [
        ("seq_modeling_block/conv_q", "seq_modeling_block.conv_q"),
        ("seq_modeling_block/conv_k", "seq_modeling_block.conv_k"),
        ("conv/conv1", "conv.conv"),
    ],
)
def test_convolutions_slide_alike(jax_and_torch, jax, name):
    """flax Conv, padding 'CAUSAL', one group a channel: y[t] = b + sum_k kernel[k, 0] * x[t - 3 + k]."""
    params, state = jax_and_torch
    kernel, bias = params[f"model/h/0/{jax}/kernel"], params[f"model/h/0/{jax}/bias"]
    x = torch.randn(6, 8)
    padded = torch.cat([torch.zeros(3, 8), x])
    expected = torch.stack([bias + sum(kernel[k, 0] * padded[t + k] for k in range(4)) for t in range(6)])
    weight = state[f"model.layers.0.{name}.weight"]
    found = torch.nn.functional.conv1d(padded.T[None], weight, state[f"model.layers.0.{name}.bias"], groups=8)
    torch.testing.assert_close(found[0].T, expected)


def test_rate_gate_is_a_dense_layer_per_head(jax_and_torch):
    """flax: sigmoid's argument for head h is x @ kernel[h] + bias[h], kernel [H, C, 1]."""
    params, state = jax_and_torch
    block = "model/h/0/seq_modeling_block/learnable_ttt_lr"
    x = torch.randn(5, 8)
    for head in range(2):
        expected = x @ params[f"{block}/kernel"][head] + params[f"{block}/bias"][head]
        weight, bias = state[f"{BLOCK}learnable_ttt_lr_weight"][head], state[f"{BLOCK}learnable_ttt_lr_bias"][head]
        torch.testing.assert_close(torch.nn.functional.linear(x, weight, bias), expected)


@pytest.mark.parametrize(
    ("jax", "name"),
    [
        ("model/wte/embedding", "model.embed_tokens.weight"),
        ("model/ln_f/kernel", "model.norm.weight"),
        ("model/h/0/seq_norm/kernel", "model.layers.0.seq_norm.weight"),
        ("model/h/0/ffn_norm/kernel", "model.layers.0.ffn_norm.weight"),
        ("model/h/0/conv/conv_norm/kernel", "model.layers.0.conv.norm.weight"),
        ("model/h/0/seq_modeling_block/ttt_norm/scale", f"{BLOCK}ttt_norm_weight"),
        ("model/h/0/seq_modeling_block/ttt_norm/bias", f"{BLOCK}ttt_norm_bias"),
        ("model/h/0/seq_modeling_block/post_norm/scale", f"{BLOCK}post_norm.weight"),
        ("model/h/0/seq_modeling_block/post_norm/bias", f"{BLOCK}post_norm.bias"),
        ("model/h/0/seq_modeling_block/learnable_token_idx", f"{BLOCK}learnable_token_idx"),
        ("model/h/0/seq_modeling_block/ttt_dense_0", f"{BLOCK}W1"),
        ("model/h/0/seq_modeling_block/ttt_bias_0", f"{BLOCK}b1"),
        ("model/h/0/seq_modeling_block/ttt_dense_1", f"{BLOCK}W2"),
        ("model/h/0/seq_modeling_block/ttt_bias_1", f"{BLOCK}b2"),
    ],
)
def test_the_rest_keeps_its_layout(jax_and_torch, jax, name):
    params, state = jax_and_torch
    assert torch.equal(state[name], params[jax])


def test_untied_head_is_transposed(jax_and_torch):
    params, state = jax_and_torch
    assert torch.equal(state["lm_head.weight"], params["lm_head/kernel"].T)


def test_layer_numbers_of_two_digits():
    assert torch_name("model/h/11/ffn_norm/kernel")[0] == "model.layers.11.ffn_norm.weight"


# Parameters in millions, from the sizes of the paper's Table 3 with the shapes of the official PyTorch code.
MILLIONS = {
    ("125m", "linear", True): 110.42,
    ("125m", "mlp", True): 114.59,
    ("125m", "linear", False): 110.28,
    ("350m", "linear", True): 337.68,
    ("350m", "mlp", False): 348.40,
    ("760m", "mlp", True): 758.53,
    ("760m", "linear", False): 733.02,
    ("1.3b", "linear", True): 1285.64,
    ("1.3b", "mlp", True): 1307.86,
}


@pytest.mark.parametrize(("size", "learner", "mamba"), MILLIONS)
def test_official_sizes_are_recognised_from_shapes(tmp_path, size, learner, mamba):
    """A full-size file whose elements are all holes: configuration, size name, inner rate and parameter count."""
    preset = SIZES[size]
    shapes = model_shapes(
        learner,
        vocab=32000,
        width=preset["hidden_size"],
        heads=preset["num_attention_heads"],
        inter=preset["intermediate_size"],
        layers=preset["num_hidden_layers"],
        mamba=mamba,
    )
    source = open_source(write_holes(tmp_path / "streaming_params", shapes))
    with source.handle:
        config = infer_config(source.shapes, {})
    assert size_name(config) == size
    backbone = "mamba" if mamba else "transformer"
    assert config.to_dict() == TTTConfig.preset(size, learner, backbone).to_dict()
    assert config.ttt_base_lr == {"linear": 1.0, "mlp": 0.1}[learner]
    count = sum(math.prod(shape) for shape in source.shapes.values())
    assert round(count / 1e6, 2) == MILLIONS[size, learner, mamba]


def shapes_without(*names):
    shapes = {torch_name("/".join(path))[0]: shape for path, shape in model_shapes("mlp", **DIMENSIONS).items()}
    return {name: shape for name, shape in shapes.items() if name not in names}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (shapes_without("model.embed_tokens.weight"), "missing parameter model.embed_tokens.weight: not a TTT"),
        (shapes_without(f"{BLOCK}W2"), r"unknown learner: inner weights of layer 0 are \['W1', 'b1', 'b2'\]; known"),
        (shapes_without() | {f"{BLOCK}W3": (2, 4, 4)}, r"unknown learner: .*'W3'.*known: linear \(W1, b1\); mlp"),
        (shapes_without() | {"model.layers.2.seq_norm.weight": (8,)}, "missing layer 1: the file has layers up to 2"),
    ],
)
def test_weights_that_imply_no_model(shapes, message):
    with pytest.raises(CheckpointError, match=message):
        infer_config(shapes, {})


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"mini_batch_size": 8}, "config.json says mini_batch_size=8, the weights say 16"),
        ({"num_attention_heads": 4}, "config.json says num_attention_heads=4, the weights say 2"),
        ({"ttt_layer_type": "linear"}, "config.json says ttt_layer_type='linear', the weights say 'mlp'"),
        ({"vocab_size": 12}, "config.json says vocab_size=12, the weights say 11"),
        ({"ttt_base_lr": "much"}, "ttt_base_lr='much'"),
    ],
)
def test_config_json_must_agree_with_the_weights(declared, message):
    with pytest.raises(CheckpointError, match=message):
        infer_config(shapes_without(), declared)


def test_config_json_adds_what_weights_cannot_say():
    config = infer_config(shapes_without(), {"ttt_base_lr": 0.25, "rope_theta": 5e5, "auto_map": {"x": "y"}})
    assert (config.ttt_base_lr, config.rope_theta) == (0.25, 5e5)
    assert not hasattr(config, "auto_map")


@pytest.mark.parametrize(
    "name", ["model/h/0/seq_modeling_block/wz/kernel", "model/x", "model/h/a/seq_norm/kernel", "params"]
)
def test_foreign_names_are_refused(name):
    with pytest.raises(CheckpointError, match=f"unexpected parameter {name}"):
        torch_name(name)
