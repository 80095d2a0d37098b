"""The same comparisons on a GPU, and what only a GPU can show: graphs, streams, and the same bits at every run."""

import pytest
import torch

from tests.ttt_impl.kernels.cases import Case, Result, case, excess
from tests.ttt_impl.kernels.test_linear_backward_emulation import Upstream, errors
from ttt_impl.kernels import loader
from ttt_impl.kernels.operators import linear_backward, linear_decode, linear_forward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def there(x: Case) -> Case:
    return Case(*(t.cuda() for t in x))


def forward(x: Case, save: bool = False) -> Result:
    return Result(*linear_forward(*there(x), None, None, None, 0, save))


def here(r: Result) -> Result:
    return Result(*(t.cpu() for t in r))


@pytest.mark.parametrize("width", [64, 96, 128])
@pytest.mark.parametrize("length", [1, 16, 53, 512])
def test_forward_matches_the_primal_form(length: int, width: int) -> None:
    assert loader.ready("ttt_linear_fwd", width, torch.device("cuda", 0))
    x = case(length, batch=2, heads=2, width=width)
    assert excess(x, here(forward(x))) < 1


def test_many_heads_match_few() -> None:
    """More heads than fit at once, by the kernel of two slices a warp."""
    x = case(85, batch=64, heads=8)
    result = here(forward(x))
    ends = Result(*(part(t, x) for t in result[:4]), *result[4:])
    assert excess(x.rows([0, 63]), ends) < 1


def part(t: torch.Tensor, x: Case) -> torch.Tensor:
    """The first and last rows of the batch of a result [B, ...] or [B * H, ...]."""
    batch = len(x.q)
    return t[[0, -1]] if len(t) == batch else t.unflatten(0, (batch, -1))[[0, -1]].flatten(0, 1)


@pytest.mark.parametrize("length", [16, 53, 512])
def test_backward_matches_autograd(length: int) -> None:
    x = case(length, heads=2)
    d, r = Upstream(x), forward(x, save=True)
    mine = linear_backward(d.out.cuda(), d.end.cuda(), *there(x)[:7], r.end, r.updates, r.checkpoints, None)
    worst = errors(x, d, Case(*(t.cpu() for t in mine)))
    assert max(worst.values()) < 1, worst


def test_every_run_gives_the_same_bits() -> None:
    x = case(512, batch=8, heads=8)
    first = forward(x, save=True)
    for _ in range(20):
        assert all(map(torch.equal, forward(x, save=True), first))


def test_a_captured_step_is_right_at_every_position() -> None:
    """Decoding 40 tokens by one graph of one token: the counters live on the device."""
    x = case(40, batch=2, heads=2)
    y, token = there(x), there(x.tokens(0, 1))
    state = [y.start.clone(), y.start.new_zeros(4, 16, 65), y.start.new_zeros(4, 16, 64)]
    state.append(torch.zeros(4, dtype=torch.int32, device="cuda"))
    fresh = [t.clone() for t in state]
    linear_decode(*token[:7], *state, None)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = linear_decode(*token[:7], *state, None)
    for t, value in zip(state, fresh, strict=True):
        t.copy_(value)
    outs = []
    for t in range(40):
        for to, value in zip(token[:4], y.tokens(t, t + 1)[:4], strict=True):
            to.copy_(value)
        graph.replay()
        outs.append(out.clone())
    result = Result(torch.cat(outs, 1), *state[:3], out, out)
    assert excess(x, here(result)) < 1
    assert state[3].tolist() == [40 % 16] * 4
