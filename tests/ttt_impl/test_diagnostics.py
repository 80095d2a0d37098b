"""The inner losses, weight changes and rates that a run can draw, against the token-by-token primal."""

import pytest
import torch

from tests.ttt_impl.helpers import EXACT, LEARNERS, expanded, gap, model, tokens
from tests.ttt_impl.test_reference import PRIMAL
from ttt_impl.diagnostics import inner_diagnostics
from ttt_impl.learner import Inputs
from ttt_impl.reading import read
from ttt_impl.reference import apply_learner

EACH = pytest.mark.parametrize("kind", LEARNERS)


@EACH
@torch.no_grad()
def test_losses_and_changes_are_those_of_the_primal(kind: str) -> None:
    built, ids = model(kind, "transformer"), tokens(1, 10)
    found = inner_diagnostics(built, ids)
    layer = built.model.layers[0].seq_modeling_block
    u = built.model.layers[0].seq_norm(built.model.embed_tokens(ids))
    inputs = layer.views(u, read(built.config, u, [0], None, None))
    w0 = expanded(layer.initial_weights(), 1)
    gamma, beta = inputs.gamma[:, None], inputs.beta[:, None]

    def loss(at: Inputs, weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
        answer = layer.learner.output(at.k, apply_learner(at.k, weights), gamma, beta)
        return 0.5 * (answer - at.v).square().sum(-1)[0]

    for t in range(10):
        now = inputs.each(lambda x, t=t: x[:, :, t : t + 1])
        past = inputs.each(lambda x, t=t: x[:, :, : t - t % 4])
        before = PRIMAL[kind](past, w0).weights if t >= 4 else w0
        asked = inputs.each(lambda x, t=t: x[:, :, : t + 1])._replace(q=inputs.k[:, :, : t + 1])
        answer = PRIMAL[kind](asked, w0).output[:, :, -1]
        assert gap(found.loss_initial[0, :, t], loss(now, w0)[:, 0]) < EXACT
        assert gap(found.loss_before[0, :, t], loss(now, before)[:, 0]) < EXACT
        assert gap(found.loss_after[0, :, t], 0.5 * (answer - now.v[:, :, 0]).square().sum(-1)[0]) < EXACT
    for m in range(2):
        after = PRIMAL[kind](inputs.each(lambda x, m=m: x[:, :, : 4 * m + 4]), w0).weights
        change = sum((a - b).square().sum((2, 3)) for a, b in zip(after, w0, strict=True)).sqrt()
        assert gap(found.weight_change[0, :, m], change[0]) < EXACT
    assert gap(found.weight_norm[0], sum(w.square().sum((2, 3)) for w in w0).sqrt()[0]) < EXACT
    assert gap(found.learning_rate[0], inputs.lr[0]) == 0
    assert gap(found.token_rate[0], inputs.tok) == 0


@EACH
def test_shapes_and_what_they_say(kind: str) -> None:
    """Two layers, three heads, 23 tokens in mini-batches of 4. The first mini-batch starts at W0; a step helps."""
    built = model(kind, "mamba")
    found = inner_diagnostics(built, tokens(5, 23))
    assert [tuple(x.shape) for x in found] == [(2, 3, 23)] * 3 + [(2, 3, 5), (2, 3), (2, 3, 23), (2, 4)]
    assert gap(found.loss_initial[..., :4], found.loss_before[..., :4]) < EXACT
    assert found.loss_after.mean() < found.loss_before.mean()
    assert all(x.isfinite().all() for x in found)
    assert not any(x.requires_grad for x in found)


def test_shorter_than_a_mini_batch_and_without_a_ttt_layer() -> None:
    assert inner_diagnostics(model(), tokens(1, 3)).weight_change.shape == (2, 3, 0)
    with pytest.raises(ValueError, match=r"model=Linear has no TTT layer"):
        inner_diagnostics(torch.nn.Linear(2, 2), tokens(1, 3))


def test_measuring_leaves_the_model_as_it_was() -> None:
    built, ids = model(), tokens(1, 6)
    before = built(ids).logits
    inner_diagnostics(built, ids)
    assert torch.equal(built(ids).logits, before)
    assert not any(m._forward_pre_hooks for m in built.modules())
