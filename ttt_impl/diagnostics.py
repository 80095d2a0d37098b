"""What the inner loop does while a model reads: its loss before and after learning, how far W moves, its rates.

The paper's Fig. 4 draws three inner losses of token t against t: of W0, which has read nothing; of the weights at the
start of t's mini-batch, which have read the past; and of W_t, which has just taken the step on t itself. The gap from
the first to the second is what the layer has learned from the context, the gap to the third what one step gains.
(The JAX release logs the same three for one token a mini-batch, as a mean over features; here they are the stated loss
1/2 || f(k_t; W) - v_t ||^2 of every token.)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ttt_impl.layer import TTTLayer
from ttt_impl.learner import Inputs, Weights
from ttt_impl.ops import ttt_linear, ttt_mlp
from ttt_impl.reading import Reading
from ttt_impl.reference import apply_learner
from ttt_impl.state import fold, unfold


class InnerDiagnostics(NamedTuple):
    """Means over the batch, for layers x heads x tokens (or M full mini-batches, or K places)."""

    loss_initial: Tensor
    """Loss of W0 [layers, H, L]."""
    loss_before: Tensor
    """Loss of the weights at the start of the token's mini-batch [layers, H, L]."""
    loss_after: Tensor
    """Loss of W_t, after the token's own step [layers, H, L]."""
    weight_change: Tensor
    """Frobenius norm of W - W0, all fast weights of a head together, after each full mini-batch [layers, H, M]."""
    weight_norm: Tensor
    """The same norm of W0 itself [layers, H]."""
    learning_rate: Tensor
    """lr_t of the gate [layers, H, L]."""
    token_rate: Tensor
    """tok_i [layers, K]; the step of token j in the output of token i is tok_i * lr_j."""


@torch.no_grad()
def inner_diagnostics(model: nn.Module, input_ids: Tensor) -> InnerDiagnostics:
    """Read input_ids [B, L] (whole sequences, no padding) with a TTT model and report on every layer."""
    found: list[InnerDiagnostics] = []

    def look(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, TTTLayer)
        u, reading = arguments[:2]
        found.append(_of_layer(layer, u, reading))

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, TTTLayer)]
    if not hooks:
        raise ValueError(f"model={type(model).__name__} has no TTT layer; valid choices: a model made of TTTLayer")
    try:
        model(input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return InnerDiagnostics(*(torch.stack(x) for x in zip(*found, strict=True)))


def _of_layer(layer: TTTLayer, u: Tensor, reading: Reading) -> InnerDiagnostics:
    """Diagnostics of one layer, without the leading dimension."""
    inputs, w0, bias = layer.views(u, reading), layer.initial_weights(), layer.learner.bias
    work = inputs.lr.dtype
    inputs = inputs.each(lambda x: x.to(work))
    start = unfold(fold(tuple(w.to(work) for w in w0), len(u), bias), len(u), bias)
    run = ttt_linear if layer.config.ttt_layer_type == "linear" else ttt_mlp
    # Asked about the key instead of the query, the learner answers with f(k_t; W_t).
    result = run(inputs._replace(q=inputs.k), w0, learner=layer.learner, keep_state=True, record=reading.layout.count)
    assert result.state is not None
    size = layer.config.mini_batch_size
    steps = [unfold(state.weights, len(u), bias) for state in (*result.closed, result.state)]
    before = [
        _loss(layer, inputs.each(lambda x, m=m: x[:, :, m * size : (m + 1) * size]), w)  # type: ignore[misc]
        for m, w in enumerate(steps)
    ]
    after = 0.5 * (result.output - inputs.v).square().sum(-1)
    change = [_norm([a - b for a, b in zip(w, start, strict=True)]) for w in steps[1:]]
    return InnerDiagnostics(
        _loss(layer, inputs, start).mean(0),
        torch.cat(before, 2).mean(0),
        after.mean(0),
        torch.stack(change, 2).mean(0) if change else after.new_zeros(after.shape[1], 0),
        _norm(start).mean(0),
        inputs.lr.mean(0),
        inputs.tok,
    )


def _loss(layer: TTTLayer, inputs: Inputs, weights: Weights) -> Tensor:
    """1/2 || f(k; W) - v ||^2 of every token at fixed weights, [B, H, L]."""
    gamma, beta = inputs.gamma[:, None], inputs.beta[:, None]
    z = apply_learner(inputs.k, weights)
    return layer.learner.loss(z, layer.learner.target(inputs.k, inputs.v), gamma, beta)


def _norm(weights: Weights | list[Tensor]) -> Tensor:
    """Frobenius norm over all fast weights of a head, [B, H]."""
    return torch.stack([w.square().sum((2, 3)) for w in weights]).sum(0).sqrt()
