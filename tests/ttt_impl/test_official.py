"""The whole model against a literal transcription of the official mathematics: logits, loss, every gradient, names."""

import pytest
import torch
from torch.nn import functional as F

from tests.ttt_impl import official
from tests.ttt_impl.helpers import EXACT, GRADIENT, LEARNERS, gap, model, tokens
from ttt_impl import TTTConfig, TTTForCausalLM
from ttt_impl.configuration import BACKBONES

BOTH = pytest.mark.parametrize("backbone", list(BACKBONES))
EACH = pytest.mark.parametrize("kind", LEARNERS)


@EACH
@BOTH
@pytest.mark.parametrize("length", [1, 3, 4, 17])
def test_logits(kind: str, backbone: str, length: int) -> None:
    built, ids = model(kind, backbone), tokens(2, length)
    with torch.no_grad():
        expected = torch.stack([official.logits(built.config, built.state_dict(), row) for row in ids])
        assert gap(built(ids).logits, expected) < EXACT


@EACH
@BOTH
def test_loss_and_gradient_of_every_parameter(kind: str, backbone: str) -> None:
    built, ids = model(kind, backbone).train(), tokens(2, 14)
    loss = built(ids, labels=ids).loss
    loss.backward()
    leaves = {n: p.detach().clone().requires_grad_() for n, p in built.named_parameters()}
    tied = leaves | {"lm_head.weight": leaves["model.embed_tokens.weight"]}
    expected = torch.stack([official.logits(built.config, tied, row) for row in ids])
    theirs = F.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    theirs.backward()
    assert gap(loss, theirs) < EXACT
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        assert gap(parameter.grad, leaves[name].grad) < GRADIENT, name


@EACH
def test_published_sizes_in_single_precision(kind: str) -> None:
    """Head width 96 and mini-batch 16, as in the 760M model, and the tolerance of the golden vectors."""
    built = model(kind, "mamba", hidden_size=192, num_attention_heads=2, mini_batch_size=16).float()
    ids = tokens(1, 40)
    with torch.no_grad():
        assert gap(built(ids).logits[0], official.logits(built.config, built.state_dict(), ids[0])) < 2e-5


@EACH
@BOTH
def test_negative_token_rates_are_clamped(kind: str, backbone: str) -> None:
    built, ids = model(kind, backbone), tokens(1, 9)
    with torch.no_grad():
        built.model.layers[0].seq_modeling_block.learnable_token_idx.copy_(torch.tensor([-2.0, 0.3, -0.5, 0.1]))
        expected = official.logits(built.config, built.state_dict(), ids[0])
        assert gap(built(ids).logits[0], expected) < EXACT


@EACH
@BOTH
def test_parameter_names_and_shapes(kind: str, backbone: str) -> None:
    c = TTTConfig.preset("125m", kind, backbone, num_hidden_layers=1)
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in TTTForCausalLM(c).state_dict().items()}
    width, heads, f, inner = 768, 12, 64, 2048
    layer: dict[str, tuple[int, ...]] = {
        "seq_norm.weight": (width,), "ffn_norm.weight": (width,), "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width), "mlp.down_proj.weight": (width, inner),
    }  # fmt: skip
    block: dict[str, tuple[int, ...]] = {f"{n}_proj.weight": (width, width) for n in "qvo"}
    block |= {"learnable_ttt_lr_weight": (heads, 1, width), "learnable_ttt_lr_bias": (heads, 1)}
    block |= {"learnable_token_idx": (16,), "ttt_norm_weight": (heads, f), "ttt_norm_bias": (heads, f)}
    block |= {"post_norm.weight": (width,), "post_norm.bias": (width,)}
    hidden = f if kind == "linear" else 4 * f
    block |= {"W1": (heads, f, hidden), "b1": (heads, 1, hidden)}
    if kind == "mlp":
        block |= {"W2": (heads, hidden, f), "b2": (heads, 1, f)}
    if backbone == "transformer":
        block["k_proj.weight"] = (width, width)
    else:
        layer |= {"conv.norm.weight": (width,), "conv.conv.weight": (width, 1, 4), "conv.conv.bias": (width,)}
        block |= {f"conv_{n}.weight": (width, 1, 4) for n in "qk"} | {f"conv_{n}.bias": (width,) for n in "qk"}
        block["g_proj.weight"] = (width, width)
    layer |= {f"seq_modeling_block.{k}": v for k, v in block.items()}
    expected = {f"model.layers.0.{k}": v for k, v in layer.items()}
    expected |= {"model.embed_tokens.weight": (32000, width), "model.norm.weight": (width,)}
    assert shapes == expected | {"lm_head.weight": (32000, width)}


@pytest.mark.parametrize(
    ("size", "kind", "backbone", "millions"),
    [
        ("125m", "linear", "mamba", 110.42), ("125m", "mlp", "transformer", 114.44),
        ("760m", "mlp", "mamba", 758.53), ("1.3b", "linear", "transformer", 1284.85),
    ],
)  # fmt: skip
def test_presets_have_the_published_number_of_parameters(size: str, kind: str, backbone: str, millions: float) -> None:
    with torch.device("meta"):
        built = TTTForCausalLM(TTTConfig.preset(size, kind, backbone))
    assert abs(built.num_parameters() / 1e6 - millions) < 0.01


def test_initialisation() -> None:
    """Normal(0, 0.02) for W0 and the gate, zeros and ones elsewhere, PyTorch's own for convolutions."""
    torch.manual_seed(0)
    block = TTTForCausalLM(TTTConfig.preset("125m", num_hidden_layers=1, vocab_size=100)).model.layers[0]
    inner = block.seq_modeling_block
    for parameter in (inner.W1, inner.learnable_ttt_lr_weight, inner.q_proj.weight, block.mlp.up_proj.weight):
        assert abs(parameter.std().item() - 0.02) < 1e-3
    for parameter in (inner.b1, inner.learnable_ttt_lr_bias, inner.learnable_token_idx, inner.ttt_norm_bias):
        assert parameter.abs().max() == 0
    for parameter in (inner.ttt_norm_weight, inner.post_norm.weight, block.seq_norm.weight, block.conv.norm.weight):
        assert gap(parameter, torch.ones_like(parameter)) == 0
    for conv in (inner.conv_q, inner.conv_k, block.conv.conv):
        assert abs(conv.weight.std().item() - 0.5 / 3**0.5) < 0.02
        assert 0.4 < conv.weight.abs().max() <= 0.5
        assert 0.4 < conv.bias.abs().max() <= 0.5
