"""How a model comes to the kernels: the self-check, the choice, bf16 tokens, decoding at fixed addresses."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.helpers import scatter
from tests.ttt_impl.kernels.cases import error
from tests.ttt_impl.tape import Tape
from ttt_impl import Inputs, TTTConfig, TTTForCausalLM, layer, ops
from ttt_impl.configuration import BACKBONES
from ttt_impl.cpu import decode, fused_cpu, pointwise
from ttt_impl.kernels import choice, emulation, loader, operators, self_check
from ttt_impl.kernels.arguments import KERNELS
from ttt_impl.kernels.bounds import BOUNDS
from ttt_impl.layout import plain
from ttt_impl.learner import PUBLISHED
from ttt_impl.ops import ttt_linear

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
CPU = torch.device("cpu")
LAYERS = 2
BF16 = 2e-2
"""What bf16 tokens leave of a whole model's logits; the same model in float32 is 1e-2 away."""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    for cached in (choice._failure, choice._warn_once, self_check.complaint):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _no_operators_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for a GPU here, which has none of them."""
    monkeypatch.setattr(fused_cpu, "available", lambda source: False)
    for module in (decode, pointwise):
        monkeypatch.setattr(module, "library", lambda source: None)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tokens go where a GPU's would."""
    monkeypatch.setattr(ops, "on_gpu", lambda inputs: True)
    monkeypatch.setattr(operators, "NARROW_HEADS", 4)


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_passes_its_self_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "NARROW_HEADS", 2)
    assert self_check.complaint(name, KERNELS[name].widths[0], CPU) is None


def test_a_kernel_that_raises_is_refused_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: object) -> None:
        raise RuntimeError("cuLaunchKernel: misaligned address\nmore")

    monkeypatch.setattr(operators, "launch", launch)
    words = "self-check of ttt_linear_bwd, head dimension 64, on cpu: cuLaunchKernel: misaligned address"
    assert self_check.complaint("ttt_linear_bwd", 64, CPU) == words


def test_a_kernel_that_writes_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "launch", lambda *_: None)
    for name in ("ttt_linear_fwd", "ttt_linear_bwd", "ttt_linear_decode"):
        assert "is off by" in str(self_check.complaint(name, 64, CPU))


def test_the_check_asks_for_nothing_around_it() -> None:
    """Under inference_mode, autocast and another default dtype the answer is the same."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert self_check.complaint("ttt_linear_bwd", 64, CPU) is None
    finally:
        torch.set_default_dtype(torch.float32)


def inputs(length: int = 20) -> tuple[Inputs, tuple[Tensor, ...]]:
    problem, weights = self_check.problem("linear", 2, 64)
    return problem.each(lambda x: x[:, :, :length]), weights


def test_a_refused_kernel_is_warned_of_once_and_the_plain_path_taken(
    emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "launch", lambda *_: None)
    given, weights = inputs()
    with pytest.warns(RuntimeWarning, match="plain PyTorch instead.*self-check of ttt_linear_fwd.*is off by"):
        result = ttt_linear(given, weights)
    assert result.path == "scan"
    assert "self-check" in result.why_not
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ttt_linear(given, weights).path == "scan"
    with pytest.raises(ValueError, match="path='fused-cuda' cannot be taken: self-check of ttt_linear_fwd"):
        ttt_linear(given, weights, path="fused-cuda")


def test_a_kernel_that_does_not_compile_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(loader, "missing", lambda *_: "nvcc: not found")
    with pytest.warns(RuntimeWarning, match="nvcc: not found"):
        assert choice.failure("ttt_linear_fwd", 64, torch.device("cuda", 0)) == "nvcc: not found"


def test_a_kernel_is_not_checked_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """That would break the capture, and the failure would stay for good."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(
        RuntimeError, match="ttt_linear_decode is compiled and checked at its first use; run a step before"
    ):
        choice.failure("ttt_linear_decode", 64, torch.device("cuda", 0))


def test_what_was_never_fused_is_no_reason_to_warn(emulated: None) -> None:
    given, weights = inputs()
    wide = given.each(lambda x: x.float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ttt_linear(wide, weights)
    assert (result.path, "tokens are torch.float32; valid choices: torch.bfloat16" in result.why_not) == ("scan", True)
    with pytest.raises(ValueError, match=r"cannot be taken: tokens are torch.float32; valid"):
        ttt_linear(wide, weights, path="fused-cuda")


def test_elsewhere_than_on_a_gpu_nothing_is_asked() -> None:
    given, weights = inputs()
    result = ttt_linear(given, weights)
    assert (result.path, result.why_not) == ("scan", "")
    with pytest.raises(ValueError, match="cannot be taken: tokens are on cpu; valid choices: cuda"):
        ttt_linear(given, weights, path="fused-cuda")


def test_the_choice_compiles_into_one_graph(emulated: None) -> None:
    """The self-check runs while torch.compile traces, and its answer is a constant."""
    given, weights = inputs()
    mine = [x.clone().requires_grad_() for x in (*given, *weights)]

    def call(*x: Tensor) -> Tensor:
        result = ttt_linear(Inputs(*x[:7]), x[7:], layout=plain(20, 16, CPU))
        assert result.path == "fused-cuda"
        return result.output

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    out = compiled(*mine)
    assert torch.equal(out, call(*mine))
    for a, b in zip(torch.autograd.grad(out.float().sum(), mine), torch.autograd.grad(call(*mine).float().sum(), mine),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)


# ---- whole models


def model(dtype: torch.dtype = torch.float32, backbone: str = "mamba") -> TTTForCausalLM:
    sizes = {"vocab_size": 53, "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": LAYERS}
    built = TTTForCausalLM(TTTConfig(**sizes, num_attention_heads=2, eos_token_id=None, **BACKBONES[backbone])).eval()
    scatter(built, 0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter *= 0.5
    return built.to(dtype)


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(53, (batch, length), generator=torch.Generator().manual_seed(seed))


def paths(built: TTTForCausalLM) -> set[str]:
    return {block.seq_modeling_block.kernel_path for block in built.model.layers}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("how", ["bf16", "autocast", "float32"])
def test_models_bring_bf16_tokens(how: str, backbone: str, emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bf16 model and a float32 model under autocast take the kernels, training too; a float32 model does not."""
    built = model(torch.bfloat16 if how == "bf16" else torch.float32, backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        mine = built(ids(2, 21), labels=ids(2, 21))
        mine.loss.backward()
        assert paths(built) == {"scan" if how == "float32" else "fused-cuda"}
        gradients = [p.grad.clone() for p in built.parameters()]
        built.zero_grad()
        monkeypatch.setattr(ops, "on_gpu", lambda inputs: False)
        plainly = built(ids(2, 21), labels=ids(2, 21))
        plainly.loss.backward()
    assert paths(built) == {"scan"}
    assert error(mine.logits, plainly.logits.double()) < BF16
    whole, other = (torch.cat([g.flatten() for g in gs]).double() for gs in (gradients, [p.grad for p in
                    built.parameters()]))  # fmt: skip
    assert error(whole, other) < 2 * BF16


@torch.no_grad()
def test_a_whole_model_compiles_into_one_graph(emulated: None) -> None:
    built, text = model(torch.bfloat16), ids(1, 32)
    compiled = torch.compile(built, fullgraph=True, backend="eager")
    assert torch.equal(compiled(text).logits, built(text).logits)
    assert paths(built) == {"fused-cuda"}


@torch.no_grad()
def test_decoding_at_fixed_addresses_equals_prefill_at_every_place(
    emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One recorded step through the decoding kernel, all places of two mini-batches; all but the tokens in float32."""
    monkeypatch.setattr(layer, "_product_dtype", lambda u: torch.bfloat16)
    built, text = model(), ids(2, 44)
    whole = built(text).logits
    cache = built(text[:, :9], use_cache=True).past_key_values
    counted = cache.copy()
    built(text[:, 9:10], past_key_values=cache.copy())  # the self-check of the kernel cannot be captured
    cache.fix()
    token, tape = text[:, 9:10].clone(), Tape()
    with tape:
        logits = built(token, past_key_values=cache).logits
    assert paths(built) == {"fused-cuda"}
    outs = [logits.clone()]
    for t in range(10, 44):
        token.copy_(text[:, t : t + 1])
        tape.replay()
        outs.append(logits.clone())
    for t, out in enumerate(outs, 9):
        assert torch.equal(out, built(text[:, t : t + 1], past_key_values=counted).logits)
        assert error(out, whole[:, t : t + 1].double()) < LAYERS * BOUNDS["linear"].out
    assert cache.positions == counted.positions == [44, 44]


@torch.no_grad()
def test_a_sequence_that_decoded_in_the_kernel_can_be_rewound(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to rewind, a cache leaves the kernels, from the state that they made."""
    monkeypatch.setattr(layer, "_product_dtype", lambda u: torch.bfloat16)
    built, text = model(), ids(1, 40)
    whole = built(text).logits
    cache = built(text[:, :13], use_cache=True).past_key_values
    built(text[:, 13:14], past_key_values=cache)
    assert paths(built) == {"fused-cuda"}
    cache.activate_past_recording()
    for t in range(4):
        built(ids(1, 4, seed=8)[:, t : t + 1], past_key_values=cache)
    assert paths(built) == {"step"}
    assert "rewound" in built.model.layers[0].seq_modeling_block.why_not_fused
    cache.crop(-4)
    assert (
        error(built(text[:, 14:], past_key_values=cache).logits, whole[:, 14:].double()) < LAYERS * BOUNDS["linear"].out
    )


def test_the_choice_is_that_of_the_published_learner(emulated: None) -> None:
    given, _ = inputs()
    assert choice.why_not("linear", given, PUBLISHED, plain(20, 16, CPU), None, False, 0, False) is None
