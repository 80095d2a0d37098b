"""Sparse attention against dense attention under the mask that its pattern describes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from baselines._rotary import rotary
from baselines.sparse_attention import Config, SparseAttention, SparseAttentionModel
from tests.baselines import checks
from tests.baselines.checks import VOCAB, tokens

SIZES = {"hidden_size": 24, "num_layers": 2, "head_dim": 6, "intermediate_size": 40, "block_size": 4}
PATTERNS = {
    "local": {"window": 7},
    "global": {"window": 6, "global_tokens": 3},
    "random": {"window": 3, "global_tokens": 2, "random_blocks": 2},
    "self": {"window": 1},
}


@pytest.fixture(scope="module", params=PATTERNS)
def model(request: pytest.FixtureRequest) -> SparseAttentionModel:
    torch.manual_seed(0)
    return checks.disturb(SparseAttentionModel.build(Config(**SIZES, **PATTERNS[request.param]), VOCAB))


def pattern(mixer: SparseAttention, length: int) -> Tensor:
    """[heads, L, L] written from the docstring: window, first tokens, the blocks that `_drawn` names."""
    options = mixer.options
    i, j = torch.arange(length)[:, None], torch.arange(length)
    reads = ((j > i - options.window) | (j < options.global_tokens)).repeat(mixer.heads, 1, 1)
    drawn, exists = mixer._drawn(torch.arange(length) // options.block_size)
    for head in range(mixer.heads):
        for t in range(length):
            for block in drawn[head, t][exists[head, t]].tolist():
                reads[head, t, block * options.block_size : (block + 1) * options.block_size] = True
    return reads & (j <= i)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 3, 29, 64])
def test_it_is_dense_attention_under_its_mask(model: SparseAttentionModel, length: int) -> None:
    mixer = copy.deepcopy(model.mixers[0]).double()
    assert isinstance(mixer, SparseAttention)
    x = torch.randn(2, length, 24, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    q, k, v = (p(x).unflatten(-1, (4, 6)).transpose(1, 2) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    q, k = (rotary(part, torch.arange(length)) for part in (q, k))
    scores = (q @ k.mT * 6**-0.5).masked_fill(~pattern(mixer, length), -torch.inf)
    expected = mixer.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, None, False)[0], expected, rtol=0, atol=1e-12)


def test_random_blocks_lie_before_the_window_each_in_its_stretch_and_differ_between_heads() -> None:
    config = Config(hidden_size=16, head_dim=2, window=9, random_blocks=4, block_size=4)
    mixer = SparseAttention(config, 16)
    drawn, exists = mixer._drawn(torch.arange(400))
    assert exists.sum(-1)[0].tolist() == [0, 0, *(min(4, b - 2) for b in range(2, 400))]
    last = drawn[:, -1]
    assert last.max() < 400 - 2
    for s in range(4):
        assert ((s * 397 // 4 <= last[:, s]) & (last[:, s] < (s + 1) * 397 // 4)).all()
    assert len({tuple(row) for row in last.tolist()}) == 8
    spread = drawn[0, 100:, 0] / torch.arange(98, 398) * 4
    assert 0.4 < spread.mean() < 0.6
    assert spread.std() > 0.2


def test_any_split_is_one_pass(model: SparseAttentionModel) -> None:
    checks.any_split_is_one_pass(model, torch.float32, 1e-5)
    checks.any_split_is_one_pass(model, torch.float64, 1e-12)


def test_float64_is_kept(model: SparseAttentionModel) -> None:
    checks.float64_is_kept(model)


@torch.no_grad()
def test_what_no_later_token_can_read_is_forgotten(model: SparseAttentionModel) -> None:
    options = model.mixers[0].options  # type: ignore[attr-defined]
    for length in (1, 5, 50):
        _, state = model.prefill(tokens(3, length))
        kept = length if options.random_blocks else options.window - 1
        assert model.state_bytes(state) == 2 * 4 * 3 * 24 * 2 * (kept + options.global_tokens)


def test_flops_are_what_torch_counts(model: SparseAttentionModel) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        counted = checks.counted_flops(model, 19)
    for mode in ("prefill", "step", "train"):
        assert model.flops(19, mode) == counted[mode]  # type: ignore[arg-type]


@torch.no_grad()
def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    """The largest tensor of a forward twice as long is at most twice as large."""
    mixer, sizes = (
        SparseAttention(Config(hidden_size=8, head_dim=8, window=16, global_tokens=4, random_blocks=2), 8),
        [],
    )

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            parts = out if isinstance(out, (tuple, list)) else [out]
            self.found = max([self.found, *(p.numel() for p in parts if isinstance(p, Tensor))])
            return out

    for length in (512, 1024):
        with Largest() as largest:
            mixer(torch.randn(1, length, 8), None, False)
        sizes.append(largest.found)
    assert sizes[1] <= 2 * sizes[0]


@pytest.mark.parametrize("options", [{"window": 0}, {"block_size": 12}, {"random_blocks": -1}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^sparse_attention: [a-z_]+="):
        Config(**options)
