"""A tiny corpus, a tiny comparison and a tiny model, for the tests of the instrument itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from baselines.config import SizeConfig, fit_to_size
from baselines.interface import SequenceModel
from baselines.registry import find
from harness.config import RunConfig
from harness.data.config import DataConfig
from harness.train.config import TrainConfig


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty documents of 600 letters in a folder."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(20):
        (folder / f"{i}.txt").write_bytes(rng.integers(97, 123, 600, dtype=np.uint8).tobytes())
    return folder


@pytest.fixture
def config(corpus: Path, workplace: Path, tmp_path: Path) -> RunConfig:
    """One small GRU, a few steps of training on the tiny corpus."""
    gru = find("mine.gru").Config(family="mine.gru", hidden_size=16)
    return RunConfig(
        model={"gru": gru},
        data=DataConfig(source="folder", path=str(corpus), test_fraction=0.3),
        train=TrainConfig(tokens=1280, length=32, batch_size=2, log_every=2, checkpoint_seconds=1e-9),
        output=str(tmp_path / "results"),
    )


@pytest.fixture
def gru(workplace: Path) -> SequenceModel:
    """A small GRU with random weights."""
    import torch

    torch.manual_seed(0)
    family = find("mine.gru")
    return family.build(family.Config(family="mine.gru", hidden_size=16), 256)


@pytest.fixture
def ttt() -> SequenceModel:
    """A small TTT-Linear with random weights."""
    import torch

    torch.manual_seed(0)
    family = find("ttt")
    size = SizeConfig(60_000, 0.05, hidden_size=32, num_layers=2, head_dim=16)
    return family.build(fit_to_size("ttt", family.Config(family="ttt"), size, 256), 256)
