"""Single operators, forward and backward: Mamba's scan and TTT's inner loops without the model around them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mamba import modeling_mamba

from baselines import _fused_scan
from baselines._selective_scan import selective_scan
from baselines._series import fits
from baselines.rivals.missing import NotInstalled
from harness.measure.clock import Clock
from ttt_impl.learner import Inputs
from ttt_impl.ops import ttt_linear, ttt_mlp

Function = Callable[..., Tensor]


@dataclass
class Operator:
    """A function of tensors, `ours` and a `rival`'s, with inputs of the length in question."""

    inputs: list[Tensor]
    ours: Function
    rival: Function


class OperatorWork:
    """One call and its backward."""

    def __init__(self, function: Function, inputs: list[Tensor]) -> None:
        self.function, self.inputs = function, inputs
        torch.manual_seed(0)
        self.grad = torch.randn(self.run().shape)

    def run(self) -> Tensor:
        """The output; gradients of the inputs start anew."""
        for value in self.inputs:
            value.grad = None
        return self.function(*self.inputs)

    def turn(self, clock: Clock) -> list[float]:
        """Forward and backward, timed together."""
        start = clock.mark()
        self.run().backward(self.grad)
        return clock.seconds([start, clock.mark()])

    def result(self) -> list[Tensor]:
        """Output, then the gradient of each input."""
        output = self.run()
        output.backward(self.grad)
        return [output.detach(), *(value.grad for value in self.inputs if value.grad is not None)]


def operator(name: str, rival: str, length: int) -> Operator:
    """One of `OPERATORS` against a rival; NotInstalled if that is not here."""
    torch.manual_seed(0)
    return OPERATORS[name](rival, length)


def _scan(rival: str, length: int, channels: int = 384, states: int = 16) -> Operator:
    """Mamba's gated scan of x, dt, z [1, L, D], bias [D], A [D, N], B, C [1, L, N], D [D], as in a 2M model."""
    inputs = [
        torch.randn(1, length, channels),
        torch.randn(1, length, channels),
        torch.full((channels,), -4.0),
        -torch.arange(1.0, states + 1).repeat(channels, 1),
        torch.randn(1, length, states),
        torch.randn(1, length, states),
        torch.ones(channels),
        torch.randn(1, length, channels),
    ]
    theirs = _plain_scan if rival == "scan" else _transformers_scan(mambapy=rival == "mambapy")
    return Operator(_leaves(inputs), _our_scan, theirs)


def _our_scan(x: Tensor, dt: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    if not fits(x, _fused_scan.SOURCE):
        return _plain_scan(x, dt, bias, A, B, C, D, z)
    return _fused_scan.fused_scan(x, dt, bias, A, B, C, D, z, None)[0]


def _plain_scan(x: Tensor, dt: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    return selective_scan(x, F.softplus(dt + bias), A, B, C, D, z)[0]


def _transformers_scan(mambapy: bool) -> Function:
    """transformers' function, which wants time last; NotInstalled where it, or mambapy, is missing."""
    theirs = getattr(modeling_mamba, "mamba_selective_scan", None)
    if theirs is None:
        raise NotInstalled("this version of transformers has no function mamba_selective_scan")
    if mambapy and importlib.util.find_spec("mambapy") is None:
        raise NotInstalled("mambapy is not installed: pip install mambapy")

    def scan(x: Tensor, dt: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
        y: Tensor = theirs(x.mT, dt.mT, A, B.mT, C.mT, D, z.mT, bias, True, use_mambapy=mambapy)
        return y.mT

    return scan


def _inner_loop(kind: str, path: str, length: int, heads: int = 4, f: int = 64, k: int = 16) -> Operator:
    """TTT's inner loop over q, k, v [1, H, L, f] from W0, as in a 3.3M model: the path that is taken against `path`."""
    run = ttt_linear if kind == "linear" else ttt_mlp
    views = [torch.randn(1, heads, length, f) for _ in range(3)]
    rates = [torch.rand(1, heads, length) / f, 1 / torch.arange(1.0, k + 1)]
    norm = [torch.ones(heads, f), torch.zeros(heads, f)]
    widths = [(f, f), (1, f)] if kind == "linear" else [(f, 4 * f), (1, 4 * f), (4 * f, f), (1, f)]
    weights = [0.02 * torch.randn(heads, *width) for width in widths]

    def by(path: str) -> Function:
        return lambda *values: run(Inputs(*values[:7]), tuple(values[7:]), path=path).output

    return Operator(_leaves([*views, *rates, *norm, *weights]), by("auto"), by(path))


def _leaves(values: list[Tensor]) -> list[Tensor]:
    return [value.detach().requires_grad_() for value in values]


OPERATORS: dict[str, Callable[[str, int], Operator]] = {
    "selective_scan": _scan,
    "ttt_linear": lambda path, length: _inner_loop("linear", path, length),
    "ttt_mlp": lambda path, length: _inner_loop("mlp", path, length),
}
