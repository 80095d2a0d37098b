"""The inner task as a choice, the ablation ladder, and the paper's two theorems."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ttt_impl.helpers import (
    EXACT,
    LEARNERS,
    config,
    expanded,
    gap,
    generator,
    inner_inputs,
    model,
    scatter,
    tokens,
)
from tests.ttt_impl.test_reference import PRIMAL
from ttt_impl import TTTForCausalLM, ttt_linear
from ttt_impl.ablation import ablation_ladder
from ttt_impl.configuration import INNER_TASKS
from ttt_impl.layer import TTTLayer
from ttt_impl.learner import Inputs, Learner
from ttt_impl.reading import read

EACH = pytest.mark.parametrize("kind", LEARNERS)


def layer_and_input(kind: str, length: int, **changes: object) -> tuple[TTTLayer, Tensor]:
    c = config(kind, "transformer", **changes)
    layer = TTTLayer(c).double()
    scatter(layer, 3)
    return layer, torch.randn(1, length, c.hidden_size, dtype=torch.float64, generator=generator(4))


def turned(x: Tensor, places: Tensor) -> Tensor:
    """RoPE by the rotation matrix of each pair; x [L, f]."""
    rows = []
    for row, place in zip(x, places.tolist(), strict=True):
        pairs = []
        for i, (a, b) in enumerate(row.view(-1, 2)):
            angle = torch.tensor(place * 10000.0 ** (-2 * i / x.shape[1]), dtype=x.dtype)
            pairs.append(torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]))
        rows.append(torch.cat(pairs))
    return torch.stack(rows)


def pairs_of(layer: TTTLayer, u: Tensor) -> Inputs:
    """The (input, label, rate) of every token and head, written out from the task's formula; u [1, L, C]."""
    c, length = layer.config, u.shape[1]
    size, heads, f = c.mini_batch_size, c.num_attention_heads, c.head_dim
    places = torch.arange(length) % size
    q, k = u[0] @ layer.q_proj.weight.T, u[0] @ layer.k_proj.weight.T
    views: list[list[Tensor]] = [[], [], [], []]
    for h in range(heads):
        part = slice(h * f, (h + 1) * f)
        label = u[0, :, part] if c.inner_task == "reconstruction" else u[0] @ layer.v_proj.weight[part].T
        gate = torch.sigmoid(u[0] @ layer.learnable_ttt_lr_weight[h, 0] + layer.learnable_ttt_lr_bias[h, 0])
        rate, key = c.ttt_base_lr * gate / f, k[:, part]
        if c.inner_task == "next_token":
            key = torch.stack([key[max(0, t - 1)] for t in range(length)])
            rate = torch.stack([rate[t] if t else 0 * rate[t] for t in range(length)])
        for view, x in zip(views, (turned(q[:, part], places), turned(key, places), label, rate), strict=True):
            view.append(x)
    tok = (1 / torch.arange(1, size + 1, dtype=u.dtype) + layer.learnable_token_idx).clamp_min(0)
    stacked = [torch.stack(view)[None] for view in views]
    return Inputs(*stacked, tok, layer.ttt_norm_weight, layer.ttt_norm_bias)  # type: ignore[call-arg]


@EACH
@pytest.mark.parametrize("task", INNER_TASKS)
@torch.no_grad()
def test_layer_is_the_primal_on_the_written_pairs(kind: str, task: str) -> None:
    layer, u = layer_and_input(kind, 11, inner_task=task)
    pairs = pairs_of(layer, u)
    expected = PRIMAL[kind](pairs, expanded(layer.initial_weights(), 1)).output
    reading = read(layer.config, u, [0], None, None)
    assert gap(layer.inner_loop(layer.views(u, reading), reading, None).output, expected) < EXACT
    mixed = layer.post_norm(expected.transpose(1, 2).flatten(2)) @ layer.o_proj.weight.T
    assert gap(layer(u, reading), mixed) < EXACT


@EACH
@torch.no_grad()
def test_next_token_learns_from_the_pair_it_completes(kind: str) -> None:
    """Key t alone enters no output before t + 1; the first token learns nothing at all."""
    layer, u = layer_and_input(kind, 6, inner_task="next_token")
    reading = read(layer.config, u, [0], None, None)
    inputs = layer.views(u, reading)
    assert inputs.lr[..., 0].abs().max() == 0
    assert inputs.lr[..., 1:].min() > 0
    before = layer(u, reading)
    layer.k_proj.register_forward_hook(lambda _, __, y: y + torch.eye(6, dtype=y.dtype)[3][None, :, None])
    after = layer(u, reading)
    assert torch.equal(before[:, :4], after[:, :4])
    assert gap(before[:, 4], after[:, 4]) > 1e-4


def test_tasks_differ_and_reconstruction_needs_no_label_view() -> None:
    ids, seen = tokens(1, 9), []
    for task in INNER_TASKS:
        built = model("linear", inner_task=task)
        assert ("model.layers.0.seq_modeling_block.v_proj.weight" in built.state_dict()) == (task != "reconstruction")
        seen.append(built(ids).logits)
    assert gap(seen[0], seen[1]) > 1e-3
    assert gap(seen[0], seen[2]) > 1e-3


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """sum_(j <= i) (q_i . k_j) v_j, one token at a time; [B, H, L, f]."""
    memory = torch.zeros(*k.shape[:2], k.shape[3], v.shape[3], dtype=k.dtype)
    outputs = []
    for t in range(q.shape[2]):
        memory = memory + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, None, :] @ memory)[:, :, 0])
    return torch.stack(outputs, 2)


def test_theorem_1_linear_attention() -> None:
    """TTT with a linear learner, W0 = 0, batch gradient descent and rate 1 (1/2 for ||.||^2) is linear attention."""
    length, f = 50, 8
    inputs = inner_inputs(length, length, width=f)
    inputs = inputs._replace(lr=torch.ones_like(inputs.lr), tok=torch.ones_like(inputs.tok))
    zero = torch.zeros(3, f, f, dtype=torch.float64), torch.zeros(3, 1, f, dtype=torch.float64)
    learner = Learner(norm=False, residual=False, bias=False)
    for path in ("scan", "autograd"):
        output = ttt_linear(inputs, zero, learner=learner, path=path).output
        assert gap(output, linear_attention(*inputs[:3])) < 1e-12


@torch.no_grad()
def test_theorem_1_as_a_configuration() -> None:
    """The first row of the ladder, through the layer, cache included; a wrong rate or an LN would show."""
    length = 20
    row = ablation_ladder(length, 8)["linear_attention"]
    layer, u = layer_and_input("linear", length, **row)
    reading = read(layer.config, u, [0], None, None)
    views = layer.views(u, reading)
    expected = linear_attention(views.q, views.k, views.v)
    assert gap(layer.inner_loop(views, reading, None).output, expected) < 1e-12
    assert not {"W1", "b1", "ttt_norm_weight", "learnable_token_idx", "learnable_ttt_lr_weight"} & set(
        layer.state_dict()
    )


def test_theorem_2_attention_is_a_kernel_estimator() -> None:
    """A nonparametric learner, the Nadaraya-Watson estimator over all pairs read, is softmax attention.

    f(x; x_1 .. x_t) = sum_s kappa(x, x_s) v_s / sum_s kappa(x, x_s) with kappa(x, x_s) = exp(k_s . q): its "training"
    is to remember the pairs. The layers of this library are the same construction with parametric learners.
    """
    q, k, v = inner_inputs(12, 4)[:3]
    estimates = []
    for t in range(12):
        kernel = torch.exp((k[:, :, : t + 1] * q[:, :, t : t + 1]).sum(-1, keepdim=True))
        estimates.append((kernel * v[:, :, : t + 1]).sum(2) / kernel.sum(2))
    attention = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    assert gap(torch.stack(estimates, 2), attention) < 1e-12


def test_ladder_ends_at_the_published_layer() -> None:
    ladder = ablation_ladder(2048, 64)
    last = config("linear", "mamba", **ladder["mamba_backbone"]).to_dict()
    assert last == config("linear", "mamba", mini_batch_size=16).to_dict()
    rows = list(ladder.values())
    assert all(rows[i] != rows[i + 1] for i in range(len(rows) - 1))


@pytest.mark.parametrize("row", list(ablation_ladder(12, 8)))
def test_every_rung_trains_and_decodes(row: str) -> None:
    built = TTTForCausalLM(config(**ablation_ladder(12, 8)[row])).double()
    scatter(built, 1)
    ids = tokens(2, 12)
    built(ids, labels=ids).loss.backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    with torch.no_grad():
        head = built(ids[:, :5], use_cache=True)
        tail = built(ids[:, 5:], past_key_values=head.past_key_values)
        assert gap(torch.cat([head.logits, tail.logits], 1), built(ids).logits) < EXACT


@EACH
def test_rates_by_option(kind: str) -> None:
    """Constant eta: no gate, base_lr / f for all; constant token rate: 1 at every place; the scale multiplies."""
    for eta, rate in ((True, "constant"), (False, "decay"), (False, "constant")):
        layer, u = layer_and_input(kind, 5, learnable_eta=eta, token_rate=rate, ttt_base_lr=0.5)
        layer.inner_lr_scale = 0.25
        inputs = layer.views(u, read(layer.config, u, [0], None, None))
        expected = torch.ones(4) if rate == "constant" else 1 / torch.arange(1, 5, dtype=torch.float64)
        assert gap(inputs.tok, expected.double()) < 1e-12
        if not eta:
            assert gap(inputs.lr, torch.full_like(inputs.lr, 0.25 * 0.5 / 8)) < 1e-12
        else:
            assert inputs.lr.std() > 1e-4
