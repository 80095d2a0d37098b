"""torch.compile sees the plain scan as one graph, forward and backward, and keeps C++ operators out of its graphs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.helpers import initial_weights, inner_inputs
from ttt_impl.learner import Inputs
from ttt_impl.ops import ttt_linear, ttt_mlp


@pytest.mark.parametrize(("kind", "path"), [("linear", "scan"), ("mlp", "scan"), ("linear", "auto")])
def test_a_compiled_inner_loop_has_the_same_gradients(kind: str, path: str) -> None:
    run, found = ttt_linear if kind == "linear" else ttt_mlp, []
    leaves = [x.float().detach().requires_grad_() for x in (*inner_inputs(6, 4), *initial_weights(kind))]

    def by(path: str) -> Callable[..., Tensor]:
        return lambda *given: run(Inputs(*given[:7]), tuple(given[7:]), path=path).output

    for output in (by(path), torch.compile(by(path), fullgraph=path == "scan", backend="eager")):
        y = output(*leaves)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
