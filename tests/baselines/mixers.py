"""Small models of every mixer, with chunks shorter than the texts that they are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baselines import convolution, hybrid, linear_attention, low_rank_attention, recurrent, s4d
from baselines._mixer import MixerConfig
from baselines._mixer_family import MixerFamily
from baselines.registry import find
from tests.baselines import checks
from tests.baselines.checks import VOCAB

SIZES: dict[str, Any] = {"hidden_size": 24, "num_layers": 2, "head_dim": 6, "intermediate_size": 40}
CONFIGS: dict[str, MixerConfig] = {
    "lstm": recurrent.Config(cell="lstm", **SIZES),
    "linear": linear_attention.Config(**SIZES),
    "linear, no positions": linear_attention.Config(rotary=False, **SIZES),
    "linear, no features": linear_attention.Config(features="identity", normaliser=False, output_norm=True, **SIZES),
    "low rank": low_rank_attention.Config(block=8, rank=3, **SIZES),
    "long": convolution.Config(reach=12, **SIZES),
    "long, beyond the text": convolution.Config(reach=50, **SIZES),
    "short": convolution.Config(filter="short", **SIZES),
    "s4d": s4d.Config(state_size=8, **SIZES),
    "attention and ttt": hybrid.Config(mixers=["transformer", {"family": "ttt", "backbone": "transformer"}], **SIZES),
    "mamba and ttt": hybrid.Config(mixers=["mamba", {"family": "ttt", "learner": "mlp"}], backbone="mamba", **SIZES),
}


def built(config: MixerConfig) -> MixerFamily:
    torch.manual_seed(0)
    family: Any = find(config.family)
    return checks.disturb(family.build(config, VOCAB))


def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks shorter than the texts of these tests."""
    monkeypatch.setattr(linear_attention, "CHUNK", 8)
    monkeypatch.setattr(low_rank_attention, "GROUP", 2)
    monkeypatch.setattr(s4d, "PIECE", 8)
