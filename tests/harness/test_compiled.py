"""`runtime.compile`: the blocks of a training are compiled, and what comes out is the plain one's but for rounding.

Compiled without machine code (`aot_eager`): what is asked here is that graphs are right, not what a compiler makes of
them.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path

import pytest
import torch

from baselines.config import fit_to_size
from baselines.interface import SequenceModel
from baselines.registry import find
from harness.config import RunConfig
from harness.data.tokens import TokenStore
from harness.measure.scenarios import TrainStepScenario
from harness.run import check_compile
from harness.runtime import RuntimeConfig
from harness.train.config import TrainConfig
from harness.train.engine import AsTrained, blocks
from harness.train.loop import loss_of
from tests.harness.peers import SIZE, train


@pytest.fixture
def compiled_by(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What torch.compile was called with, quick as it is here."""
    calls: list[object] = []
    quick = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", lambda forward: (calls.append(forward), quick(forward))[1])
    return calls


def test_a_compiled_training_is_the_plain_one(
    config: RunConfig, tmp_path: Path, compiled_by: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Mamba, whose operators are C++ that no graph may hold: 1e-5 in the loss, 2e-4 in the weights."""
    config.train = dataclasses.replace(config.train, tokens=2 * 96, batch_size=3, checkpoint_seconds=1e9)
    tokens = TokenStore.build(config.data, Path(config.output)).folder
    found = [train(config, tokens, RuntimeConfig(compile=way), tmp_path / str(way)) for way in (False, True)]
    assert compiled_by
    assert found[0].loss == pytest.approx(found[1].loss, abs=1e-5)
    for name, weight in found[0].weights.items():
        assert abs(found[1].weights[name] - weight).max() < 2e-4 * abs(weight).max(), name


def test_equal_blocks_share_their_code_and_keep_it_where_activations_are_computed_again(
    compiled_by: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    family, size = find("transformer"), dataclasses.replace(SIZE, parameters=50_000, num_layers=4)
    model = family.build(fit_to_size("transformer", family.Config("transformer"), size, 256), 256).model.train()
    windows, gradients = torch.randint(256, (2, 17)), []
    for runtime in (RuntimeConfig(), RuntimeConfig(compile=True, activation_checkpointing=True)):
        with AsTrained(model, runtime), caplog.at_level(logging.WARNING):
            gradients.append(torch.autograd.grad(loss_of(model, windows), list(model.parameters())))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len({type(block) for block in blocks(model)}) < 4
    assert not caplog.records
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_timed_step_trains_as_the_run_does(gru: SequenceModel, compiled_by: list[object]) -> None:
    """In parts, compiled (a model without blocks as a whole), and the model is as before afterwards."""
    recipe, runtime = TrainConfig(tokens=1024, length=16, batch_size=3), RuntimeConfig(micro_batch=2, compile=True)
    scenario = TrainStepScenario(gru, "cpu", recipe, runtime)
    rows: list[int] = []
    hook = gru.model.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    scenario.prepare()
    hook.remove()
    assert rows == [2, 1]
    assert len(compiled_by) == 1
    assert "forward" not in vars(gru.model)
    row = scenario.row([1.0])
    assert (row.micro_batch, row.activation_checkpointing, row.batch) == (2, False, 3)


def test_without_a_compiler_it_is_refused(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttt_impl.cpu.build.shutil.which", lambda name: None)
    check_compile(config, "cpu")
    config.runtime = RuntimeConfig(compile=True)
    with pytest.raises(ValueError, match=r"^runtime\.compile=true: no C\+\+ compiler on PATH .*; install one or"):
        check_compile(config, "cpu")


def test_only_compiled_runs_have_another_folder(config: RunConfig) -> None:
    plain = config.hash
    config.runtime = RuntimeConfig(engine="fsdp", micro_batch=1)
    assert config.hash == plain
    config.runtime = RuntimeConfig(compile=True)
    assert config.hash != plain
