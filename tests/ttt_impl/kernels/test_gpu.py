"""One run on a GPU that proves everything: the comparisons of the emulation, and what only a GPU can show.

Graphs at every place of a mini-batch, streams, several devices, the same bits at every run, and whole models that train
and decode through the kernels as they do without them.
"""

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.helpers import scatter
from tests.ttt_impl.kernels.cases import Case, Result, case, error, excess
from tests.ttt_impl.kernels.test_linear_backward_emulation import Upstream, errors
from ttt_impl import TTTConfig, TTTForCausalLM, ops
from ttt_impl.configuration import BACKBONES, BASE_LEARNING_RATE
from ttt_impl.kernels import choice, operators, self_check
from ttt_impl.kernels.arguments import KERNELS
from ttt_impl.kernels.bench import correctness
from ttt_impl.kernels.bench.table import passed
from ttt_impl.kernels.operators import linear_backward, linear_decode, linear_forward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda", 0)
MLP = ("ttt_mlp_fwd", "ttt_mlp_bwd", "ttt_mlp_decode")
MODEL = 2e-2
"""What bf16 tokens leave of a whole model's logits and gradients, as in `test_choice_emulation.py`."""


def there(x: Case) -> Case:
    return Case(*(t.cuda() for t in x))


def forward(x: Case, save: bool = False) -> Result:
    return Result(*linear_forward(*there(x), None, None, None, 0, save))


def here(r: Result) -> Result:
    return Result(*(t.cpu() for t in r))


@pytest.mark.parametrize("width", [64, 96, 128])
@pytest.mark.parametrize("length", [1, 16, 53, 512])
def test_forward_matches_the_primal_form(length: int, width: int) -> None:
    x = case(length, batch=2, heads=2, width=width)
    assert excess(x, here(forward(x))) < 1


@pytest.mark.parametrize("name", [*KERNELS, *(name for name in MLP if name not in KERNELS)])
def test_every_kernel_passes_its_self_check(name: str) -> None:
    if name not in KERNELS:
        pytest.skip(f"{name} has yet to be written")
    for width in KERNELS[name].widths:
        assert choice.failure(name, width, DEVICE) is None


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("length", [22, 112, 512])
def test_every_kernel_matches_the_dual_form(name: str, length: int) -> None:
    """Through the wiring of `ops.py`, whichever learner; decoding has one problem."""
    for width in KERNELS[name].widths:
        found = list(correctness.check(name, width, length, DEVICE))
        assert all(map(passed, found)), [record for record in found if not passed(record)]


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


def test_two_streams_do_not_meet() -> None:
    """Launches go to torch's current stream, and what one stream computes the other leaves alone."""
    x, y = case(512, batch=4, heads=4), case(512, batch=4, heads=4, seed=1)
    alone = [forward(x), forward(y)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results = []
    for _ in range(5):
        for stream, given in zip(streams, (x, y), strict=True):
            with torch.cuda.stream(stream):
                results.append(forward(given))
    torch.cuda.synchronize()
    for i, result in enumerate(results):
        assert all(map(torch.equal, result[:4], alone[i % 2][:4]))


def test_every_device_has_kernels_of_its_own() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    x = case(53, heads=2)
    for index in (1, 0):
        device = torch.device("cuda", index)
        assert choice.failure("ttt_linear_fwd", 64, device) is None
        result = Result(*linear_forward(*(t.to(device) for t in x), None, None, None, 0, False))
        assert result.out.device == device
        assert excess(x, here(result)) < 1


# ---- whole models

EACH = pytest.mark.parametrize("kind", ["linear", "mlp"])


def model(kind: str, dtype: torch.dtype = torch.float32) -> TTTForCausalLM:
    """Two layers of heads of 64."""
    if f"ttt_{kind}_fwd" not in KERNELS:
        pytest.skip(f"the kernels of TTT-{kind} have yet to be written")
    sizes = {"vocab_size": 53, "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2}
    learner = {"ttt_layer_type": kind, "ttt_base_lr": BASE_LEARNING_RATE[kind]}
    config = TTTConfig(**sizes, **learner, num_attention_heads=2, eos_token_id=None, **BACKBONES["mamba"])
    built = TTTForCausalLM(config).eval()
    scatter(built, 0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter *= 0.5
    return built.to(DEVICE, dtype)


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(53, (batch, length), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def paths(built: TTTForCausalLM) -> set[str]:
    return {block.seq_modeling_block.kernel_path for block in built.model.layers}


@EACH
@pytest.mark.parametrize("how", ["bf16", "autocast"])
def test_training_goes_through_the_fused_backward(kind: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of all parameters, and where twenty steps of AdamW lead, beside the plain path."""
    outcomes = []
    for fused in (True, False):
        monkeypatch.setattr(ops, "on_gpu", lambda inputs, fused=fused: fused)
        built = model(kind, torch.bfloat16 if how == "bf16" else torch.float32)
        optimizer, losses, gradient = torch.optim.AdamW(built.parameters(), lr=1e-3), [], torch.empty(0)
        for step in range(20):
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=how == "autocast"):
                loss = built(ids(4, 100, step), labels=ids(4, 100, step)).loss
            loss.backward()
            if step == 0:
                gradient = torch.cat([p.grad.flatten().double() for p in built.parameters()])
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert paths(built) == {"fused-cuda" if fused else "scan"}
        outcomes.append((gradient, torch.tensor(losses)))
    (mine, my_losses), (plain, its_losses) = outcomes
    assert error(mine, plain) < 2 * MODEL
    assert (my_losses - its_losses).abs().max() < MODEL


@EACH
@torch.no_grad()
def test_a_captured_step_of_a_model_is_right_at_every_place(kind: str) -> None:
    """One graph of a whole step, forty tokens: what the same steps give uncaptured, and what one pass gives."""
    built, text = model(kind, torch.bfloat16), ids(2, 49)
    whole = built(text).logits
    cache = built(text[:, :9], use_cache=True).past_key_values
    plain, token = cache.copy(), text[:, 9:10].clone()
    built(token, past_key_values=cache.copy())
    cache.fix()
    state = [t for layer in cache.layers for t in layer.tensors()] + [cache.counter]
    before = [t.clone() for t in state]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = built(token, past_key_values=cache).logits
    assert paths(built) == {"fused-cuda"}
    for t, value in zip(state, before, strict=True):
        assert torch.equal(t, value)
    for t in range(9, 49):
        token.copy_(text[:, t : t + 1])
        graph.replay()
        assert error(logits, built(text[:, t : t + 1], past_key_values=plain).logits.double()) < 1e-3
        assert error(logits, whole[:, t : t + 1].double()) < MODEL
    assert cache.positions == plain.positions == [49, 49]


@EACH
@torch.no_grad()
def test_generation_takes_the_kernels(kind: str) -> None:
    built = model(kind, torch.bfloat16)
    out = built.generate(ids(2, 21), max_new_tokens=20, do_sample=False)
    assert out.shape == (2, 41)
    assert paths(built) == {"fused-cuda"}


@EACH
def test_a_compiled_model_takes_the_kernels(kind: str) -> None:
    built, text = model(kind, torch.bfloat16), ids(2, 48)
    expected = built(text).logits
    compiled = torch.compile(built, fullgraph=True)
    assert error(compiled(text).logits, expected.double()) < MODEL
    assert paths(built) == {"fused-cuda"}


def test_a_kernel_that_errs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is written, the self-check sees what was in memory."""
    monkeypatch.setattr(operators, "launch", lambda *_: None)
    assert "is off by" in str(self_check.complaint.__wrapped__("ttt_linear_fwd", 64, DEVICE))
