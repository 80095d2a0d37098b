"""Which weights move while a model is tested, and by what rule.

Krause, Kahembwe, Murray and Renals, Dynamic Evaluation of Neural Sequence Models (arXiv 1709.07432): after each
segment, with gradient g, weights θ that began at θ0, step size η and decay λ,

    sgd    θ ← θ - η g + λ (θ0 - θ)
    rms    θ ← θ - η g / (√m + ε) + min(λ √m / mean(√m), 1) (θ0 - θ)

where m is the mean of g² over segments of the training text. ε is the mean of √m over all weights that move, so that a
weight whose gradient was hardly ever seen there takes no leap (a choice of ours). Which weights: all; low-rank
additions to every linear layer (Hu et al., arXiv 2106.09685); or the MLPs of the last quarter of the blocks, as
end-to-end test-time training does (arXiv 2512.23675).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from harness.measure.dynamic.config import DynamicConfig

_LAYER = re.compile(r"\.(\d+)\.")


class LowRank(nn.Module):
    """W + B A, with A [r, in] random and B [out, r] zero: nothing changes until B learns."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        size = (rank, weight.shape[1])
        a = torch.randn(size, generator=generator).to(weight) * weight.shape[1] ** -0.5
        self.a, self.b = nn.Parameter(a), nn.Parameter(weight.new_zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight in use."""
        return weight + self.b @ self.a


class AdaptedWeights:
    """The weights of `model` that move. Use as a context manager: leaving it puts the model back as it was."""

    def __init__(self, model: PreTrainedModel, config: DynamicConfig) -> None:
        self.model, self.config = model, config
        self.required = {name: p.requires_grad for name, p in model.named_parameters()}
        self.lora: list[nn.Linear] = []

    def __enter__(self) -> AdaptedWeights:
        chosen = list(self._choose())
        if not chosen:
            raise ValueError(f"measure.dynamic.parameters={self.config.parameters}: this model has no such weights")
        self.model.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_()
        self.parameters = chosen
        self.start = [p.detach().clone() for p in chosen]
        self.squares = [torch.zeros_like(p) for p in chosen]
        return self

    def __exit__(self, *_: object) -> None:
        self.reset()
        for linear in self.lora:
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.required[name])
            parameter.grad = None

    @property
    def count(self) -> int:
        """Numbers that move."""
        return sum(p.numel() for p in self.parameters)

    @torch.no_grad()
    def reset(self) -> None:
        """Back to where the weights began."""
        for parameter, start in zip(self.parameters, self.start, strict=True):
            parameter.copy_(start)
            parameter.grad = None

    def gather(self, segments: int) -> None:
        """Add this segment's squared gradients, one of `segments`, to m."""
        for parameter, square in zip(self.parameters, self.squares, strict=True):
            if parameter.grad is not None:
                square.addcmul_(parameter.grad, parameter.grad, value=1 / segments)
                parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update from the gradients of a segment that has been scored."""
        decay = self.config.decay
        for parameter, start, square in zip(self.parameters, self.start, self.squares, strict=True):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            pull = torch.full_like(parameter, decay)
            if self.config.method == "rms":
                root = square.sqrt()
                gradient = gradient / (root + self.typical)
                pull = (decay * root / self.typical).clamp(max=1.0)
            parameter.add_(pull * (start - parameter) - rate * gradient)
            parameter.grad = None

    @cached_property
    def typical(self) -> float:
        """Mean of √m over all weights that move, once m is gathered."""
        return sum(float(square.sqrt().sum()) for square in self.squares) / self.count

    def _choose(self) -> Iterator[nn.Parameter]:
        if self.config.parameters == "all":
            yield from self.model.parameters()
        elif self.config.parameters == "lora":
            yield from self._low_rank()
        else:
            names = [name for name, _ in self.model.named_parameters()]
            layers = max((int(match[1]) for name in names if (match := _LAYER.search(name))), default=-1) + 1
            first = layers - max(1, layers // 4)
            for name, parameter in self.model.named_parameters():
                match = _LAYER.search(name)
                if match and int(match[1]) >= first and "mlp" in name.lower():
                    yield parameter

    def _low_rank(self) -> Iterator[nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        head = self.model.get_output_embeddings()
        for linear in [m for m in self.model.modules() if isinstance(m, nn.Linear) and m is not head]:
            added = LowRank(linear.weight.detach(), self.config.rank, generator)
            parametrize.register_parametrization(linear, "weight", added)
            self.lora.append(linear)
            yield from added.parameters()
