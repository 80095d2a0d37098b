"""The operators between the products against PyTorch in float64: values, gradients, widths, threads."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ttt_impl.helpers import generator, model, tokens
from ttt_impl.backbone import RMSNorm
from ttt_impl.convolution import causal_conv, depthwise_conv
from ttt_impl.cpu import build, pointwise
from ttt_impl.rope import rotate, rotations

CLOSE = 2e-6
WIDTHS = pytest.mark.parametrize("width", [6, 16, 40])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def gap(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


def both(function: Callable[..., Tensor], plain: Callable[..., Tensor], *given: Tensor) -> None:
    """Values and gradients of `function` in float32 against `plain` in float64, and again with other threads."""
    before, results = torch.get_num_threads(), []
    try:
        for threads, run, dtype in (
            (1, plain, torch.float64),
            (1, function, torch.float32),
            (3, function, torch.float32),
        ):
            torch.set_num_threads(threads)
            leaves = [x.detach().to(dtype).requires_grad_() for x in given]
            y = run(*leaves)
            probe = normal(*y.shape, seed=9).to(dtype)
            results.append([y, *torch.autograd.grad((y * probe).sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    expected, actual, again = results
    assert all(gap(a, b) < CLOSE for a, b in zip(actual, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))


@WIDTHS
def test_silu_product(width: int) -> None:
    both(pointwise.silu_product, lambda gate, up: F.silu(gate) * up, normal(2, 41, width), normal(2, 41, width, seed=1))


@WIDTHS
def test_rms_norm(width: int) -> None:
    norm = RMSNorm(width, 1e-5)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * weight

    both(lambda x, w: pointwise.rms_norm(x, w, norm.eps), plain, normal(2, 41, width), normal(width, seed=1))


@WIDTHS
@pytest.mark.parametrize("gated", [True, False])
def test_gated_norm(width: int, gated: bool) -> None:
    def plain(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None = None) -> Tensor:
        y = F.layer_norm(x, (width,), weight, bias, 1e-6)
        return y if gate is None else F.gelu(gate, approximate="tanh") * y

    def fused(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None = None) -> Tensor:
        return pointwise.gated_norm(x, gate, weight, bias)

    given = [3 + normal(2, 41, width), normal(width, seed=1), normal(width, seed=2), normal(2, 41, width, seed=3)]
    both(fused, plain, *given[: 4 if gated else 3])


@pytest.mark.parametrize("batch", [1, 2])
def test_rotation(batch: int) -> None:
    """One table for all rows, and a table a row."""
    places = torch.arange(batch * 19).view(batch, 19) % 5
    tables = [rotations(5, 6, 1e4, torch.device("cpu"), x)[places] for x in (torch.float32, torch.float64)]
    both(lambda x: rotate(x, tables[0]), lambda x: rotate(x, tables[1]), normal(2, 19, 3, 6))


@WIDTHS
@pytest.mark.parametrize("length", [1, 2, 37])
@pytest.mark.parametrize("kind", ["fresh", "continued", "packed"])
def test_convolution(width: int, length: int, kind: str) -> None:
    conv = depthwise_conv(width, 4)
    past = normal(2, 3, width, seed=4) if kind == "continued" else None
    age = torch.arange(length).expand(2, -1) % 5 if kind == "packed" else None

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        conv.weight, conv.bias = map(torch.nn.Parameter, (weight, bias))
        held = None if past is None else past.to(x.dtype)
        return torch.func.functional_call(_Conv(conv, held, age), {"conv.weight": weight, "conv.bias": bias}, (x,))

    both(run, run, normal(2, length, width), normal(width, 1, 4, seed=1), normal(width, seed=2))


class _Conv(torch.nn.Module):
    """`causal_conv` as a module, so that its parameters can be leaves of any type."""

    def __init__(self, conv: torch.nn.Conv1d, past: Tensor | None, age: Tensor | None) -> None:
        super().__init__()
        self.conv, self.past, self.age = conv, past, age

    def forward(self, x: Tensor) -> Tensor:
        return causal_conv(self.conv, x, self.past, self.age)


@pytest.mark.parametrize("backbone", ["mamba", "transformer"])
def test_a_model_with_and_without_a_compiler(backbone: str, forgetful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gradient of a float32 model; plain PyTorch comes to 2.3e-5 in the least certain, a sum near zero."""
    ids, exact, gaps = tokens(2, 21), model("linear", backbone), {}
    exact(ids, labels=ids).loss.backward()
    for off in ("0", "1"):
        build.library.cache_clear()
        monkeypatch.setenv(build.OFF, off)
        built = model("linear", backbone).float()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            built(ids, labels=ids).loss.backward()
        assert [build.OFF in str(w.message) for w in caught] == [True] * int(off)
        pairs = zip(built.parameters(), exact.parameters(), strict=True)
        gaps[off] = max(gap(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)
    assert gaps["0"] < 1e-5
    assert gaps["1"] < 5e-5
