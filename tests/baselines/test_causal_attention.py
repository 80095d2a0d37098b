"""Attention's operator of the CPU computes what PyTorch's attention does, in any shape and on any number of threads."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines import _causal_attention
from baselines._causal_attention import attention_path, causal_attention
from baselines._rotary import rotary, turned
from ttt_impl.cpu import build

SHAPES = [
    (2, 4, 4, 256, 256, 32),
    (1, 4, 2, 100, 100, 48),
    (2, 3, 1, 37, 137, 6),
    (1, 2, 1, 700, 777, 80),
    (3, 1, 1, 16, 19, 128),
    (1, 6, 2, 65, 65, 20),
]
"""Rows, heads, heads of keys, queries, keys, features."""

pytestmark = pytest.mark.skipif(build.library(_causal_attention.SOURCE) is None, reason="no C++ compiler")


def made(rows: int, heads: int, groups: int, length: int, tokens: int, width: int) -> list[Tensor]:
    """Queries, keys, values and a gradient, as projections leave them: [B, heads, L, f], token by token in memory."""
    generator = torch.Generator().manual_seed(length)
    sizes = ((length, heads), (tokens, groups), (tokens, groups), (length, heads))
    return [torch.randn(rows, n, count, width, generator=generator).transpose(1, 2) for n, count in sizes]


def with_gradients(function: object, parts: list[Tensor]) -> list[Tensor]:
    """The result for all but the last of `parts`, and the gradients of these, the last being that of the result."""
    assert callable(function)
    leaves = [part.detach().requires_grad_() for part in parts[:-1]]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, parts[-1])]


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention under an explicit mask."""
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_attention_of_pytorch_in_float64(shape: tuple[int, ...]) -> None:
    parts = made(*shape)
    assert attention_path(*parts[:3]) == "fused-cpu"
    found = with_gradients(causal_attention, parts)
    expected = with_gradients(reference, [part.double() for part in parts])
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_bits_do_not_depend_on_threads_nor_on_where_the_numbers_lie(shape: tuple[int, ...]) -> None:
    parts, found, before = made(*shape), [], torch.get_num_threads()
    try:
        for threads, contiguous in itertools.product((1, 2, 3), (False, True)):
            torch.set_num_threads(threads)
            found.append(with_gradients(causal_attention, [x.contiguous() if contiguous else x for x in parts]))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def test_no_bit_knows_what_comes_later() -> None:
    q, k, v, dy = made(1, 2, 2, 200, 230, 32)
    whole = with_gradients(causal_attention, [q, k, v, dy * (torch.arange(200) < 90)[:, None]])
    for gradient in whole[2:]:
        assert not gradient[:, :, 120:].any()
    for x in (q[:, :, 90:], k[:, :, 120:], v[:, :, 120:]):
        x.mul_(1e3).add_(7)
    torch.testing.assert_close(causal_attention(q, k, v)[:, :, :90], whole[0][:, :, :90], rtol=0, atol=0)


def test_great_scores_neither_overflow_nor_hide_what_is_not_finite() -> None:
    q, k, v, _ = made(1, 1, 1, 90, 90, 16)
    expected = reference(300 * q.double(), k.double(), v.double())
    torch.testing.assert_close(causal_attention(300 * q, k, v).double(), expected, rtol=1e-3, atol=1e-3)
    q[:, :, 50, 3] = torch.nan
    lost = causal_attention(q, k, v).isnan().all(-1)[0, 0]
    assert lost.tolist() == [t == 50 for t in range(90)]


def test_what_it_does_not_take_goes_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, _ = made(1, 2, 2, 20, 33, 16)
    for dtype in (torch.float64, torch.bfloat16):
        assert attention_path(q.to(dtype), k.to(dtype), v.to(dtype)) == "sdpa"
    assert attention_path(q[:, :, -1:], k, v) == "sdpa"
    torch.testing.assert_close(causal_attention(q[:, :, -1:], k, v), causal_attention(q, k, v)[:, :, -1:])
    exact = causal_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(exact, reference(q.double(), k.double(), v.double()), rtol=0, atol=1e-14)
    fused = causal_attention(q, k, v)
    monkeypatch.setattr("baselines._heads.library", lambda source: None)
    assert attention_path(q, k, v) == "sdpa"
    torch.testing.assert_close(causal_attention(q, k, v), fused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [6, 32, 80])
def test_rotations_turn_and_turn_back_as_the_formula_does(width: int) -> None:
    x, _, _, dy = made(2, 3, 3, 21, 21, width)
    found = with_gradients(lambda x: rotary(x, torch.arange(5, 26)), [x, dy])
    expected = with_gradients(lambda x: rotary(x, torch.arange(5, 26)), [x.double(), dy.double()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-6)


def test_each_row_may_have_positions_of_its_own() -> None:
    x = made(2, 3, 3, 9, 9, 32)[0]
    angle = torch.rand(2, 1, 9, 16)
    found, expected = turned(x, angle.cos(), angle.sin()), turned(x.double(), angle.cos(), angle.sin())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
