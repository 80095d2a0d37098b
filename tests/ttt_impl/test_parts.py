"""The small parts around the inner loop: convolution, rotation, layout of tokens."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ttt_impl.helpers import gap, generator
from ttt_impl.convolution import causal_conv, depthwise_conv
from ttt_impl.layout import continued, packed, plain
from ttt_impl.rope import rotate, rotations

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_convolution_is_that_of_pytorch(kernel: int) -> None:
    conv, x = depthwise_conv(3, kernel).double(), normal(2, 9, 3)
    expected = F.conv1d(F.pad(x.mT, (kernel - 1, 0)), conv.weight, conv.bias, groups=3).mT
    assert gap(causal_conv(conv, x), expected) < 1e-14
    for cut in (0, 1, 5):
        past = F.pad(x, (0, 0, kernel - 1, 0))[:, cut : cut + kernel - 1]
        assert gap(causal_conv(conv, x[:, cut:], past), expected[:, cut:]) < 1e-14


def test_convolution_stops_at_document_borders() -> None:
    conv, x = depthwise_conv(3, 4).double(), normal(1, 9, 3)
    age = torch.tensor([[0, 1, 0, 0, 1, 2, 3, 4, 5]])
    expected = torch.cat([causal_conv(conv, part) for part in x.split([2, 1, 6], 1)], 1)
    assert gap(causal_conv(conv, x, age=age), expected) < 1e-14


@pytest.mark.parametrize("age", [None, torch.tensor([[0, 1, 2, 0, 1], [3, 4, 0, 1, 2]])], ids=["whole", "documents"])
def test_gradient_of_the_convolution(age: Tensor | None) -> None:
    def run(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_conv(SimpleNamespace(weight=weight, bias=bias), x, past, age)  # type: ignore[arg-type]

    leaves = [normal(2, 5, 3), normal(2, 3, 3, seed=1), normal(3, 1, 4, seed=2), normal(3, seed=3)]
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in leaves])


def test_rotation_turns_neighbouring_pairs() -> None:
    """By hand, f = 4: pairs (0, 1) by 1 radian a place and (2, 3) by theta^(-1/2)."""
    x, table = normal(1, 3, 1, 4), rotations(3, 4, 100.0, CPU, torch.float64)
    turned = rotate(x, table[None])
    for place in range(3):
        for pair, speed in ((0, 1.0), (2, 0.1)):
            angle = torch.tensor(place * speed, dtype=torch.float64)
            a, b = x[0, place, 0, pair : pair + 2]
            expected = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()])
            assert gap(turned[0, place, 0, pair : pair + 2], expected) < 1e-14


def test_layouts() -> None:
    assert plain(8, 4, CPU).close is None
    assert plain(9, 4, CPU).close.tolist() == [[True, True, False]]
    ragged = continued(5, 4, [3, 0], torch.tensor([[False] * 5, [True, True, False, False, False]]), CPU)
    assert ragged.slots.tolist() == [[3, 4, 5, 6, 7], [8, 8, 0, 1, 2]]
    assert ragged.sources.tolist() == [[5, 5, 5, 0, 1, 2, 3, 4], [2, 3, 4, 5, 5, 5, 5, 5]]
    assert ragged.close.tolist() == [[True, True], [False, False]]
    documents = packed(torch.tensor([[True, False, False, True, False, False]]), 2)
    assert documents.slots.tolist() == [[0, 1, 2, 4, 5, 6]]
    assert documents.age.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert list(documents.resets) == [2]
    assert not continued(3, 4, [2, 2], None, CPU).fits_open
    assert continued(2, 4, [2, 2], None, CPU).fits_open


def test_cut_and_join_are_inverse() -> None:
    x = normal(2, 3, 5, 4)
    padding = torch.tensor([[False] * 5, [True, True, False, False, False]])
    for layout in (plain(5, 4, CPU), continued(5, 4, [3, 1], None, CPU), continued(5, 4, [3, 1], padding, CPU)):
        back = layout.join(layout.cut(x), 2)
        expected = x if layout.padding is None else x.masked_fill(padding[:, None, :, None], 0)
        assert torch.equal(back, expected)
        assert layout.cut(x[..., 0]).shape == (layout.count, 6, 4)
