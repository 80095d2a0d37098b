"""Small models and inner-loop inputs in float64, with every parameter away from its neutral value."""

import torch
from torch import Tensor

from ttt_impl import Inputs, TTTConfig, TTTForCausalLM
from ttt_impl.configuration import BACKBONES, BASE_LEARNING_RATE
from ttt_impl.learner import PUBLISHED, Learner, Weights

EXACT = 1e-10
GRADIENT = 1e-8
LEARNERS = ("linear", "mlp")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inner_inputs(
    length: int, size: int, batch: int = 2, heads: int = 3, width: int = 8, seed: int = 0, scale: float = 4.0
) -> Inputs:
    """Random inputs; `scale` is the mean step relative to the published 0.5 / f."""
    g = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    q, k, v = (normal(batch, heads, length, width) for _ in range(3))
    lr = torch.rand(batch, heads, length, dtype=torch.float64, generator=g) * scale / width
    tok = 1 / torch.arange(1, size + 1, dtype=torch.float64)
    tok = tok + 0.1 * torch.rand(size, dtype=torch.float64, generator=g)
    return Inputs(q, k, v, lr, tok, 1 + 0.2 * normal(heads, width), 0.2 * normal(heads, width))


def initial_weights(kind: str, heads: int = 3, width: int = 8, seed: int = 1, learner: Learner = PUBLISHED) -> Weights:
    """(W1 [H, f, f], b1 [H, 1, f]) or the four of TTT-MLP; biases zero if the learner has none."""
    g, hidden = generator(seed), 4 * width
    shapes = [(width, width)] if kind == "linear" else [(width, hidden), (hidden, width)]
    weights: list[Tensor] = []
    for rows, columns in shapes:
        weights.append(0.3 / rows**0.5 * torch.randn(heads, rows, columns, dtype=torch.float64, generator=g))
        weights.append(0.2 * learner.bias * torch.randn(heads, 1, columns, dtype=torch.float64, generator=g))
    return tuple(weights)


def expanded(weights: Weights, batch: int) -> Weights:
    return tuple(w.expand(batch, *w.shape) for w in weights)


def config(kind: str = "linear", backbone: str = "mamba", **changes: object) -> TTTConfig:
    sizes = {"vocab_size": 53, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    small = sizes | {"num_attention_heads": 3, "mini_batch_size": 4, "pad_token_id": None, "eos_token_id": None}
    learner = {"ttt_layer_type": kind, "ttt_base_lr": BASE_LEARNING_RATE[kind]}
    return TTTConfig(**(small | BACKBONES[backbone] | learner | changes))


def model(kind: str = "linear", backbone: str = "mamba", seed: int = 0, **changes: object) -> TTTForCausalLM:
    """A float64 model with random, non-trivial parameters."""
    built = TTTForCausalLM(config(kind, backbone, **changes)).double().eval()
    scatter(built, seed)
    return built


def scatter(built: torch.nn.Module, seed: int) -> None:
    """Give every parameter a value that a mistake would show in."""
    g = generator(seed)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=g).to(parameter.dtype)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 1 or "bias" in name or name.endswith(("b1", "b2")):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(0.2 * noise)


def tokens(batch: int, length: int, seed: int = 0, vocabulary: int = 53) -> Tensor:
    return torch.randint(3, vocabulary, (batch, length), generator=generator(seed))


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference; NaN counts as infinite."""
    return float("inf") if a.shape != b.shape else torch.nan_to_num(a - b, nan=torch.inf).abs().max().item()
