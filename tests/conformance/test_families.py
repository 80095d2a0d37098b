"""What every shipped model must do, asked of each YAML in conf/model; a new baseline is asked by being there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from transformers import AutoModelForCausalLM

from baselines.config import FamilyConfig, SizeConfig, Unsupported, fit_to_size
from baselines.interface import SequenceModel
from baselines.registry import families, find
from harness.config_errors import CONF
from harness.gate import run_gate
from harness.train.engine import blocks, recompute_blocks
from ttt_impl.cpu.linear import Linear

MODELS = sorted((CONF / "model").glob("*.yaml"))
TINY = SizeConfig(parameters=60_000, tolerance=0.05, hidden_size=32, num_layers=2, head_dim=16)
VOCAB = 256


def family_config(path: Path) -> FamilyConfig:
    """The config of a model's YAML, its sizes still open."""
    (options,) = OmegaConf.load(path).values()
    typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(find(options.family).Config), options))
    assert isinstance(typed, FamilyConfig)
    return typed


def runs_here(path: Path) -> bool:
    """Whether a model can be built and trained on this machine; what is only loaded is asked in a test of its own."""
    config = family_config(path)
    if not find(config.family).trains:
        return False
    try:
        fit_to_size(path.stem, config, TINY, VOCAB)
    except Unsupported:
        return False
    return True


TRAINED = [path for path in MODELS if runs_here(path)]


@pytest.fixture(params=TRAINED, ids=lambda path: path.stem, scope="module")
def sized(request: pytest.FixtureRequest) -> FamilyConfig:
    """The config at the tiny budget."""
    return fit_to_size(request.param.stem, family_config(request.param), TINY, VOCAB)


@pytest.fixture
def baseline(sized: FamilyConfig) -> SequenceModel:
    """A freshly built tiny model whose every parameter is off its initial value, so that none can hide."""
    torch.manual_seed(0)
    made = find(sized.family).build(sized, VOCAB)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    made.model.eval()
    return made


def test_every_family_has_a_yaml() -> None:
    assert {family_config(path).family for path in MODELS} == set(families())


def test_the_parameter_formula_counts_what_is_built(sized: FamilyConfig, baseline: SequenceModel) -> None:
    assert sized.parameters(VOCAB) == sum(p.numel() for p in baseline.model.parameters())


def test_no_family_has_slower_linear_layers(baseline: SequenceModel) -> None:
    found = [module for module in baseline.model.modules() if isinstance(module, nn.Linear)]
    assert all(isinstance(module, Linear) for module in found)


def test_no_parameter_keeps_what_lay_in_memory(sized: FamilyConfig) -> None:
    """Deterministic mode fills what is allocated and not written with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        made = find(sized.family).build(sized, VOCAB)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not [name for name, p in made.model.named_parameters() if not p.isfinite().all()]


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "size",
    [
        TINY,
        SizeConfig(),
        SizeConfig(parameters=10_000_000, hidden_size=320, num_layers=8, head_dim=64),
        SizeConfig(parameters=125_000_000, hidden_size=768, num_layers=12, head_dim=64),
    ],
    ids=lambda size: f"{size.parameters:.0e}",
)
def test_every_model_meets_the_budget(path: Path, size: SizeConfig) -> None:
    found = fit_to_size(path.stem, family_config(path), size, VOCAB).parameters(VOCAB)
    assert abs(found / size.parameters - 1) <= size.tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gate(baseline: SequenceModel, dtype: torch.dtype) -> None:
    baseline.model.to(dtype)
    failed = [check for check in run_gate(baseline).checks if not check.passed]
    assert not failed


def test_gradients_reach_every_parameter(baseline: SequenceModel) -> None:
    ids = torch.randint(VOCAB, (2, 37))
    baseline.model.train()
    logits = baseline.model(ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    missing = [name for name, p in baseline.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing


def test_activations_computed_again_give_the_same_gradients(baseline: SequenceModel) -> None:
    ids = torch.randint(VOCAB, (2, 37))
    model = baseline.model.train()
    stacked = blocks(model)
    assert len(stacked) == model.config.num_hidden_layers
    calls: list[object] = []

    def counted(forward: Callable[..., object]) -> Callable[..., object]:
        return lambda *given, **named: (calls.append(forward), forward(*given, **named))[1]

    for block in stacked:
        block.forward = counted(block.forward)
    gradients = []
    for again in (False, True):
        if again:
            recompute_blocks(model)
        loss = torch.nn.functional.cross_entropy(model(ids, use_cache=False).logits.flatten(0, 1), ids.flatten())
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        assert len(calls) == (3 if again else 1) * len(stacked)
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_saved_model_is_the_same_in_transformers_hands(baseline: SequenceModel, tmp_path: Path) -> None:
    baseline.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(VOCAB, (1, 20))
    with torch.no_grad():
        difference = loaded(ids, use_cache=False).logits - baseline.forward(ids)
    assert float(difference.abs().max()) <= 1e-5
    greedy = loaded.generate(ids, max_new_tokens=3, do_sample=False)
    assert greedy.shape == (1, 23)


def test_generate_continues_as_forward_would(baseline: SequenceModel) -> None:
    ids = torch.randint(VOCAB, (2, 19))
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    found = baseline.model.generate(ids, max_new_tokens=20, **options)
    for _ in range(20):
        ids = torch.cat([ids, baseline.forward(ids)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, ids)


def test_score_is_bounded_pieces_of_one_pass(baseline: SequenceModel) -> None:
    ids = torch.randint(VOCAB, (2, 50))
    assert torch.allclose(baseline.score(ids, segment=7), baseline.score(ids, segment=1000), atol=1e-4)
    assert baseline.score(ids).shape == (2, 49)


@torch.no_grad()
def test_a_prefill_finishes_the_wanted_tokens_alone(baseline: SequenceModel) -> None:
    """Its logits, and those of a step after it, are those of a prefill that gives all."""
    ids, sizes = torch.randint(VOCAB, (2, 38)), list[int]()
    whole, state = baseline.prefill(ids[:, :37], logits_to_keep=0)
    after, _ = baseline.step(ids[:, 37:], state)

    def look(_: nn.Module, __: object, output: Any) -> None:
        sizes.append((output if isinstance(output, torch.Tensor) else output[0]).shape[1])

    for wanted in (1, 5, 40):
        hook = blocks(baseline.model)[-1].register_forward_hook(look)
        logits, state = baseline.prefill(ids[:, :37], logits_to_keep=wanted)
        hook.remove()
        assert torch.allclose(logits, whole[:, -wanted:], atol=1e-5)
        assert torch.allclose(baseline.step(ids[:, 37:], state)[0], after, atol=1e-5)
    assert sizes == [1, 5, 37]
    states = baseline.model(ids, use_cache=True, logits_to_keep=1, output_hidden_states=True).hidden_states or ()
    assert all(hidden.shape[:2] == ids.shape for hidden in states)


def test_state_bytes_grow_as_attention_or_not_at_all(baseline: SequenceModel) -> None:
    with torch.inference_mode():
        sizes = [baseline.state_bytes(baseline.prefill(torch.randint(VOCAB, (1, n)))[1]) for n in (32, 64, 128)]
    assert sizes[0] > 0
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])


def test_flops_are_positive_and_grow(baseline: SequenceModel) -> None:
    prefill = [baseline.flops(n, "prefill") for n in (16, 32, 64)]
    assert prefill[0] > 0
    assert all(1.5 < longer / shorter < 3 for shorter, longer in pairwise(prefill))
    assert baseline.flops(64, "train") >= 2.5 * prefill[2]
    assert 0 < baseline.flops(64, "step") < prefill[0]


def test_runs_in_bfloat16(baseline: SequenceModel) -> None:
    ids = torch.randint(VOCAB, (1, 40))
    wanted = baseline.forward(ids).detach()
    low = copy.deepcopy(baseline.model).to(torch.bfloat16)
    with torch.no_grad():
        found = low(ids, use_cache=False).logits.float()
    assert found.isfinite().all()
    assert float((found - wanted).abs().mean()) < 0.1 * float(wanted.std())
    assert baseline.kernel_path


def test_trains_under_autocast(sized: FamilyConfig) -> None:
    """As `runtime.dtype=bfloat16` trains: float32 weights, products in bfloat16; gradients stay near float32's."""
    torch.manual_seed(3)
    model = find(sized.family).build(sized, VOCAB).model.train()
    ids = torch.randint(VOCAB, (2, 41))
    gradients = []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = model(ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    assert float((gradients[1] - gradients[0]).norm()) < 0.1 * float(gradients[0].norm())


def test_overfits_64_tokens(sized: FamilyConfig) -> None:
    torch.manual_seed(1)
    model = find(sized.family).build(sized, VOCAB).model.train()
    ids = torch.randint(VOCAB, (1, 65))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(60):
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.5


MOTIF, ALPHABET = 3, 16
ORDER_BLIND = 0.4
"""Best guess without the order: one of the motif's tokens. With 3 of 16, two of them alike in 3 of 17 motifs: 0.395."""


def test_learns_to_repeat(sized: FamilyConfig) -> None:
    """The induction task: a random motif, over and over, is told from what came a motif before, and from nothing else.

    At most 200 steps, as many as the slowest family needs to be above the guess that knows the tokens but no order.
    """
    torch.manual_seed(2)
    model = find(sized.family).build(sized, VOCAB).model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    right: list[float] = []
    while len(right) < 200 and not sum(right[-10:]) > 10 * ORDER_BLIND + 0.5:
        ids = torch.randint(ALPHABET, (32, MOTIF)).repeat(1, 5)
        logits = model(ids[:, :-1], use_cache=False).logits[:, MOTIF - 1 :]
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, MOTIF:]).backward()
        right.append(float((logits.argmax(-1) == ids[:, MOTIF:]).double().mean()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert sum(right[-10:]) / 10 > ORDER_BLIND
