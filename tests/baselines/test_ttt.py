"""TTT through the common interface: sized, continued, counted; its mathematics is tested with `ttt_impl`."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines.config import SizeConfig, fit_to_size
from baselines.ttt import TTT, Config
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens
from ttt_impl import ops

WIDTH, LAYERS, F, K = 24, 2, 6, 4
HEADS, HIDDEN = WIDTH // F, 4 * F
SHAPE = {"hidden_size": WIDTH, "num_layers": LAYERS, "head_dim": F, "intermediate_size": 40, "mini_batch_size": K}
KINDS = list(itertools.product(("linear", "mlp"), ("mamba", "transformer")))


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def model(request: pytest.FixtureRequest) -> TTT:
    learner, backbone = request.param
    torch.manual_seed(0)
    return checks.disturb(TTT.build(Config(learner=learner, backbone=backbone, **SHAPE), VOCAB))


def test_any_split_is_one_pass(model: TTT) -> None:
    checks.any_split_is_one_pass(model, torch.float32, 1e-4)
    checks.any_split_is_one_pass(model, torch.float64, 1e-10)


def test_float64_is_kept(model: TTT) -> None:
    checks.float64_is_kept(model)


def test_rows_are_independent(model: TTT) -> None:
    checks.rows_are_independent(model)


def test_generate_follows_forward(model: TTT) -> None:
    checks.generate_follows_forward(model)


def test_saved_and_loaded(model: TTT, tmp_path: Path) -> None:
    checks.stock_transformers_loads_it(model, tmp_path)
    learner = model.model.config.ttt_layer_type
    loaded = TTT.load(Config(learner=learner, checkpoint=str(tmp_path)))
    torch.testing.assert_close(loaded.forward(tokens(1, 9)), model.forward(tokens(1, 9)), rtol=0, atol=0)
    other = "mlp" if learner == "linear" else "linear"
    with pytest.raises(ValueError, match=f"holds learner '{learner}', ttt.learner is '{other}'"):
        TTT.load(Config(learner=other, checkpoint=str(tmp_path)))


@torch.no_grad()
def test_the_state_is_the_same_after_any_number_of_tokens(model: TTT) -> None:
    sizes = set()
    for length in (1, 3, 50):
        _, state = model.prefill(tokens(3, length))
        sizes.add(model.state_bytes(state))
        _, state = model.step(tokens(3, 1), state)
        sizes.add(model.state_bytes(state))
    assert len(sizes) == 1
    assert sizes == {state.nbytes()}


def test_the_kernel_path_is_the_one_that_ran() -> None:
    small = TTT.build(Config(**SHAPE), VOCAB)
    assert small.kernel_path == "scan"
    for dtype, prefilled, stepped in ((torch.float64, "scan", "step"), (torch.float32, "fused-cpu", "fused-cpu")):
        small.model.to(dtype)
        with torch.no_grad():
            _, state = small.prefill(tokens(1, 5))
            assert small.kernel_path == prefilled
            small.step(tokens(1, 1), state)
        assert small.kernel_path == stepped


@pytest.mark.parametrize("learner", ["linear", "mlp"])
def test_flops_are_what_torch_counts_in_the_plain_dual_form(learner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops.SCANS, (learner, "scan"), ops.SCANS[learner, "autograd"])
    plain, convolved = (
        TTT.build(Config(learner=learner, backbone=b, **SHAPE), VOCAB) for b in ("transformer", "mamba")
    )
    plain.model.double()  # no operator of the CPU, whose products torch's counter does not see
    length, per_head = 8 * K, LAYERS * HEADS
    counted = checks.counted_flops(plain, length)
    biases = per_head * (6 * F + 2 * K if learner == "linear" else 6 * (F + HIDDEN) + 4 * K)
    assert plain.flops(length, "prefill") == pytest.approx(counted["prefill"] - length * biases, rel=0.01)
    assert plain.flops(length, "train") == pytest.approx(counted["train"] - 3 * length * biases, rel=0.01)
    convolutions = LAYERS * 3 * 2 * 4 * WIDTH
    assert convolved.flops(length, "train") == plain.flops(length, "train") + 3 * length * convolutions
    gates = (length - 1) * 2 * WIDTH * WIDTH
    assert convolved.flops(length, "prefill") == plain.flops(length, "prefill") + length * convolutions - gates


@torch.no_grad()
def test_steps_cost_on_average_what_tokens_of_a_sequence_cost(model: TTT) -> None:
    assert 3 * model.flops(7, "step") == model.flops(8, "train") - model.flops(7, "train")
    plain = TTT(copy.deepcopy(model.model).double())  # no operator of the CPU, whose products the counter does not see
    _, state = plain.prefill(tokens(1, K))
    with FlopCounterMode(display=False) as counter:
        for _ in range(K):
            _, state = plain.step(tokens(1, 1), state)
    assert model.flops(K, "step") == pytest.approx(counter.get_total_flops() / K, rel=0.1)


@pytest.mark.parametrize(("learner", "published"), [("linear", 28_672), ("mlp", 249_856)])
def test_inner_flops_at_the_published_head_width(learner: str, published: int) -> None:
    """Per token and head of width 64 with mini-batches of 16, counted by hand from the dual form's products."""
    shape = {"hidden_size": 64, "head_dim": 64, "num_layers": 1, "intermediate_size": 8, "backbone": "transformer"}
    model = TTT.build(Config(learner=learner, **shape), VOCAB)
    outside = 2 * (4 * 64 * 64 + 3 * 64 * 8 + 64 + 64 * VOCAB)
    assert model.flops(1, "prefill") - outside == published


@pytest.mark.parametrize(("learner", "rate"), [("linear", 1.0), ("mlp", 0.1)])
def test_the_inner_rate_is_the_papers_unless_given(learner: str, rate: float) -> None:
    assert TTT.build(Config(learner=learner, **SHAPE), VOCAB).model.config.ttt_base_lr == rate
    assert TTT.build(Config(learner=learner, base_lr=0.3, **SHAPE), VOCAB).model.config.ttt_base_lr == 0.3


@pytest.mark.parametrize(("learner", "backbone"), KINDS)
@pytest.mark.parametrize(
    ("parameters", "hidden_size", "num_layers", "vocab_size"),
    [(60_000, 32, 2, 256), (700_000, 128, 4, 256), (125_000_000, 768, 12, 32_000), (1_300_000_000, 2048, 24, 32_000)],
)
def test_sizes_are_met(
    learner: str, backbone: str, parameters: int, hidden_size: int, num_layers: int, vocab_size: int
) -> None:
    size = SizeConfig(parameters, 0.02, hidden_size, num_layers, min(64, hidden_size // 4))
    fitted = fit_to_size("ttt", Config(learner=learner, backbone=backbone), size, vocab_size)
    assert (fitted.hidden_size, fitted.num_layers) == (hidden_size, num_layers)
    if parameters < 10**6:
        model = TTT.build(fitted, vocab_size).model
        assert fitted.parameters(vocab_size) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "options", [{"learner": "gru"}, {"backbone": "rnn"}, {"mini_batch_size": 0}, {"hidden_size": 20, "head_dim": 8}]
)
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^ttt: [a-z_]+="):
        Config(**options)
