"""oneDNN's linear layer is PyTorch's, and is taken only where there are many rows and no gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ttt_impl.cpu import linear

pytestmark = pytest.mark.skipif(linear.OPERATOR is None, reason="this PyTorch has no oneDNN")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of oneDNN had."""
    rows, operator = list[int](), linear.OPERATOR

    def spy(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(x.numel() // x.shape[-1])
        return operator(x, *rest)

    monkeypatch.setattr(linear, "OPERATOR", spy)
    return rows


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_same_function(bias: bool, taken: list[int]) -> None:
    module = nn.Sequential(nn.Linear(24, 40, bias=bias))
    x = torch.randn(3, 100, 24)
    wanted = module(x).detach(), module(x.transpose(0, 1)).detach()
    linear.use(module)
    with torch.inference_mode():
        for given, result in zip((x, x.transpose(0, 1)), wanted, strict=True):
            torch.testing.assert_close(module(given), result, rtol=0, atol=1e-5)
    assert taken == [300, 300]


def test_few_rows_gradients_and_other_formats_go_the_ordinary_way(taken: list[int]) -> None:
    module, x = linear.Linear(16, 8), torch.randn(linear.FEWEST, 16)
    module(x).sum().backward()
    assert module.weight.grad is not None
    with torch.no_grad():
        module(x[1:])
        with torch.autocast("cpu", torch.bfloat16):
            assert module(x).dtype == torch.bfloat16
        torch.compile(module, backend="eager")(x)
        for dtype in (torch.float64, torch.bfloat16):
            module.to(dtype)(x.to(dtype))
        assert taken == []
        module.float()(x)
    assert taken == [linear.FEWEST]


def test_its_flops_are_counted() -> None:
    module = linear.Linear(16, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.randn(2, 200, 16))
    assert counter.get_total_flops() == 2 * 400 * 16 * 8
