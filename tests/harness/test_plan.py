"""A plan says what the run then does: its FLOPs, its memory, what it reads; and what a machine lacks for it."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines.config import FamilyConfig, SizeConfig, fit_to_size
from baselines.interface import Encoded, bytes_as_tokens
from baselines.registry import find
from harness.config import RunConfig
from harness.data.tokens import TokenDocument
from harness.measure.config import MeasureConfig
from harness.measure.fixed_target import fixed_target
from harness.measure.position import position_curve
from harness.measure.scenarios import TrainStepScenario
from harness.measure.window import windowed
from harness.plan import memory, missing
from harness.plan.__main__ import main
from harness.plan.check import allocated
from harness.plan.config import PlanOptions, seeds_of
from harness.plan.corpus import Corpus
from harness.plan.estimate import ModelPlan, make_plan
from harness.plan.memory import Read, activation_bytes, along_length
from harness.plan.pace import wall_seconds
from harness.plan.shrink import parts, with_weights, without_weights
from harness.plan.work import HeldOut, scoring_reads, work_of
from harness.runtime import RuntimeConfig
from harness.train.config import TrainConfig
from harness.train.engine import recompute_blocks
from harness.train.loop import loss_of

SIZE = SizeConfig(parameters=120_000, tolerance=0.2, hidden_size=32, num_layers=6, head_dim=16)
FAMILIES = {
    "transformer": find("transformer").Config(family="transformer"),
    "mamba": find("mamba").Config(family="mamba"),
    "ttt_linear": find("ttt").Config(family="ttt"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def sized(request: pytest.FixtureRequest) -> FamilyConfig:
    """Six layers of a family."""
    return fit_to_size(request.param, FAMILIES[request.param], SIZE, 256)


def test_flops_are_those_that_torch_counts() -> None:
    """Less the half of its scores that eager attention computes and the mask hides: 1.5 % of these short sequences."""
    size = SizeConfig(parameters=250_000, tolerance=0.2, hidden_size=64, num_layers=4, head_dim=16)
    family = fit_to_size("transformer", FAMILIES["transformer"], size, 256)
    config = RunConfig(model={"transformer": family}, train=TrainConfig(tokens=1600, length=16, batch_size=4))
    planned = work_of(config, "transformer", without_weights(family, 256), HeldOut([40, 33], [40, 33]))
    baseline = with_weights(family, 256)
    baseline.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as training:
        loss_of(baseline.model, torch.randint(256, (4, 17))).backward()
    assert planned.training_tokens == 1600
    assert planned.training_flops == pytest.approx(25 * training.get_total_flops(), rel=0.03)
    assert planned.training_flops + 3 * 100 * hidden(16) == pytest.approx(25 * training.get_total_flops(), rel=1e-3)
    with FlopCounterMode(display=False) as scoring:
        for read, count in planned.reads.items():
            for _ in range(count):
                baseline.score(torch.randint(256, (read.rows, read.length + 1)), targets=read.targets)
    masked = sum(count * read.rows * hidden(read.length) for read, count in planned.reads.items())
    assert planned.scoring_flops + masked == pytest.approx(scoring.get_total_flops(), rel=1e-3)


def hidden(length: int) -> int:
    """FLOPs of the pairs above the diagonal in four layers of width 64."""
    return 4 * 4 * 64 * (length * (length - 1) // 2)


def test_the_memory_of_a_step_is_what_the_allocator_gave_out(
    sized: FamilyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as it is; from parts of the layers and one row; and carried on from half of the length."""
    train = TrainConfig(tokens=2000, length=384, batch_size=3)
    step = TrainStepScenario(with_weights(sized, 256), "cpu", train, RuntimeConfig())
    step.prepare()
    measured = allocated(step._work)
    assert activation_bytes(sized, 256, 3, 384, False) == pytest.approx(measured, rel=0.001)
    assert activation_bytes(sized, 256, 3, 384, False, direct=0) == pytest.approx(measured, rel=0.01)
    monkeypatch.setattr(memory, "SAMPLE_FLOPS", 0)
    assert activation_bytes(sized, 256, 3, 384, False, direct=0) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_memory_of_a_micro_batch_beside_the_gradients_of_others(sized: FamilyConfig, recompute: bool) -> None:
    """Run as it is and carried on, with all activations or with every block's input alone."""
    baseline, windows = with_weights(sized, 256), torch.randint(256, (3, 129))
    if recompute:
        recompute_blocks(baseline.model)
    loss_of(baseline.model.train(), windows).backward()
    measured = allocated(lambda: loss_of(baseline.model, windows).backward())
    for direct in (memory.DIRECT_FLOPS, 0):
        planned = activation_bytes(sized, 256, 3, 128, False, recompute, direct)
        assert planned == pytest.approx(measured, rel=0.03)
    if recompute:
        assert planned < 0.8 * activation_bytes(sized, 256, 3, 128, False)


def test_gradients_that_are_summed_stand_beside_activations() -> None:
    family = fit_to_size("transformer", FAMILIES["transformer"], SIZE, 256)
    train, runtime = TrainConfig(tokens=2000, length=32, batch_size=4), RuntimeConfig(micro_batch=1)
    whole, summed = (memory.memory_of(family, 256, train, r, []) for r in (RuntimeConfig(), runtime))
    assert (whole.rows, summed.rows) == (4, 1)
    assert whole.step == max(whole.gradients, whole.activations)
    assert summed.step == summed.gradients + summed.activations
    assert summed.activations < whole.activations
    assert summed.rows_within(summed.training + 2 * summed.activations) == 3
    config = RunConfig(model={"transformer": family}, train=train)
    work = [
        work_of(dataclasses.replace(config, runtime=r), "transformer", without_weights(family, 256), HeldOut([], []))
        for r in (RuntimeConfig(), RuntimeConfig(activation_checkpointing=True))
    ]
    model = with_weights(family, 256).model
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as once:
        model.model(torch.randint(256, (1, 32)))
    rows = 2000 // 128 * 4
    pairs = 6 * 4 * 32 * (32 * 31 // 2)
    extra = (work[1].training_flops - work[0].training_flops) / rows
    assert extra == pytest.approx(once.get_total_flops() - pairs, rel=0.03)


def test_the_memory_of_scoring_is_what_the_allocator_gave_out(sized: FamilyConfig) -> None:
    baseline = with_weights(sized, 256)
    for read in (Read(1, 1500, 1500), Read(16, 200, 16)):
        ids = torch.randint(256, (read.rows, read.length + 1))
        baseline.score(ids, targets=read.targets)
        measured = allocated(lambda ids=ids, read=read: baseline.score(ids, targets=read.targets))
        assert memory._scoring(sized, 256, [read]) == pytest.approx(measured, rel=0.03)


def test_a_hybrid_s_parts_hold_each_of_its_mixers() -> None:

    config = find("hybrid").Config(family="hybrid", mixers=["transformer", "mamba"])
    family = fit_to_size("hybrid", config, SIZE, 256)
    cuts, count = parts(family, 256, 64)
    assert ([cut.num_layers for cut in cuts], count) == ([2, 4], 3)


def test_a_model_without_layers_is_one_part(config: RunConfig) -> None:
    assert parts(config.model["gru"], 256, 64) == ([config.model["gru"]], 1)


def test_bytes_are_carried_on_as_they_bend() -> None:
    lengths = [64, 128, 192]
    assert along_length(lengths, [5 + 2 * n for n in lengths], 640) == pytest.approx(5 + 2 * 640)
    assert along_length(lengths, [5 + n * n for n in lengths], 640) == pytest.approx(5 + 640 * 640)
    assert along_length(lengths, [100 * n - n * n / 4 for n in lengths], 640) > 0
    assert along_length([640], [7.0], 640) == 7.0


def four_bytes(text: bytes) -> Encoded:
    """Each four bytes are a token."""
    sizes = np.diff(np.append(np.arange(0, len(text), 4), len(text)))
    return Encoded(np.zeros(len(sizes), np.int64), sizes)


@pytest.mark.parametrize("encode", [bytes_as_tokens, four_bytes])
def test_what_is_read_is_what_the_conventions_read(encode: Any, tmp_path: Path) -> None:
    """To the token where these are bytes; else as many batches of as many rows, and tokens to within 3 percent."""
    rng = np.random.default_rng(0)
    sizes = [4700, 1330, 590, 2451, 1600]
    documents = [TokenDocument(str(n), rng.integers(0, 256, n, dtype=np.uint8)) for n in sizes]
    seen: Counter[Read] = Counter()

    def score(rows: np.ndarray, targets: int) -> np.ndarray:
        seen[Read(len(rows), rows.shape[1] - 1, targets)] += 1
        return np.zeros((len(rows), targets))

    per = 1 if encode is bytes_as_tokens else 4
    names = ["position", "fixed_target", "window"]
    measure = MeasureConfig(512 // per, conventions=names, targets=4096, window=16 // per, stride=8 // per)
    config = RunConfig(measure=measure, train=TrainConfig(tokens=1024, length=64))
    rest = (tmp_path, lambda done, total: None)
    position_curve(score, encode, documents, 512, 64, tmp_path / "a", *rest)
    fixed_target(score, encode, documents, 512, measure.targets, 64, tmp_path / "b", *rest)
    windowed(score, encode, documents, 512, 16, 8, 64, tmp_path / "c", *rest)
    found = scoring_reads(config, HeldOut([-(-size // per) for size in sizes], sizes, per))
    if per == 1:
        assert found == seen
    rows, tokens_read, scored = (
        [sum(count * figure(read) for read, count in reads.items()) for reads in (found, seen)]
        for figure in (lambda r: r.rows, lambda r: r.rows * r.length, lambda r: r.rows * r.targets)
    )
    assert found.total() == pytest.approx(seen.total(), rel=0.05)
    assert rows[0] == pytest.approx(rows[1], rel=0.03)
    assert tokens_read[0] == pytest.approx(tokens_read[1], rel=0.03)
    assert scored[0] == pytest.approx(scored[1], rel=0.1)


def test_the_longest_begins_and_the_clock_stops_with_the_last() -> None:
    assert wall_seconds([1.0, 2.0, 9.0, 4.0], 2) == 9.0
    assert wall_seconds([3.0, 3.0, 3.0], 2) == 6.0


def test_a_sweep_over_seeds_is_one_plan() -> None:
    assert seeds_of(["--multirun", "seed=0,1,2", "size=tiny"]) == ["size=tiny", "seeds=[0,1,2]"]
    assert seeds_of(["-m", "seed=range(0,3)"]) == ["seeds=[0,1,2]"]
    swept = ["--multirun", "seed=0,1", "size=tiny,2m"]
    assert seeds_of(swept) == ["--multirun", "size=tiny,2m", "seeds=[0,1]"]
    assert seeds_of(["seed=1", "model=[mamba,gru]"]) == ["seed=1", "model=[mamba,gru]"]


def test_seeds_and_rates_multiply_what_is_trained_and_kept(config: RunConfig) -> None:
    config.size = SizeConfig(parameters=5728)
    config.train = TrainConfig(tokens=640, length=32, batch_size=2, rates=[3e-3, 1e-2])
    one, two = (make_plan(config, PlanOptions("h100", seeds=seeds)) for seeds in ([0], [0, 1]))
    (model,) = one.models
    assert (model.work.trainings, model.work.training_tokens) == (2, 1280)
    assert model.kept == 2 * 4 * model.parameters + 6 * model.work.scored
    assert two.disk - one.disk == model.kept
    assert one.hours("h100", 3600) == pytest.approx(1 / (66.9e12 * 0.35))
    assert isinstance(model, ModelPlan)
    assert model.pace is None


def test_what_is_loaded_is_scored_alone(config: RunConfig, tmp_path: Path) -> None:
    config.size = SizeConfig(parameters=5728)
    gru = config.model["gru"]
    with_weights(gru, 256).save(tmp_path / "loaded")
    for name, place in (("loaded", str(tmp_path / "loaded")), ("hub", "nobody/nothing")):
        config.model[name] = dataclasses.replace(gru, checkpoint=place)
    plan = make_plan(config, PlanOptions("h100"))
    trained, loaded, hub = plan.models
    assert (loaded.parameters, loaded.work.trainings, loaded.work.training_flops) == (trained.parameters, 0, 0)
    assert loaded.work.scoring_flops == trained.work.scoring_flops > 0
    assert hub.problem
    assert ["nobody/nothing" in line for line in plan.missing].count(True) == 1


def test_time_here_is_steps_and_readings(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.size = SizeConfig(parameters=5728)
    monkeypatch.setattr("harness.plan.pace._step_seconds", lambda *a: 0.5)
    monkeypatch.setattr("harness.plan.pace._read_seconds", lambda *a: 0.25)
    config.measure = MeasureConfig(conventions=["position"], max_length=64, documents=3, timing=False)
    plan = make_plan(config, PlanOptions("here", seeds=[0, 1]))
    (model,) = plan.models
    assert model.pace is not None
    assert model.pace.training == pytest.approx(0.5 * config.train.steps)
    assert model.pace.scoring == pytest.approx(0.25 * 3)
    assert plan.wall_here() == pytest.approx(2 * (model.pace.training + model.pace.scoring))


def test_what_is_missing_is_said_and_no_more(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing, "_installed", lambda module: False)
    monkeypatch.setattr("ttt_impl.cpu.build.shutil.which", lambda name: None)
    gru = config.model["gru"]
    config.model["hub"] = type(gru)(family="mine.gru", checkpoint="nobody/nothing")
    config.tasks = ["continuation"]
    found = list(missing.missing(config, Corpus(problems=["no text"])))
    for line, words in zip(found, ("no text", "no C++ compiler", "nobody/nothing is not in", "lm-eval"), strict=True):
        assert words in line
    config.runtime = RuntimeConfig(device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in " ".join(missing.missing(config, Corpus()))
    place = Path("/nowhere/at/all")
    disk, memory_short = missing.short_of(2**60, 2**60, place, "cpu")
    assert disk.startswith("disk: ")
    assert memory_short.startswith("memory: ")
    assert not list(missing.short_of(0, 0, place, "cpu"))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command(
    workplace: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--config-dir", str(workplace / "mine"), "model=[my_gru]", "debug=smoke", "data=folder", "runtime=cpu"]
    assert call(monkeypatch, *given, f"data.path={corpus}", "data.test_fraction=0.3", "-m", "seed=0,1") == 0
    shown = capfd.readouterr().out
    for words in ("2 seed(s) (0, 1)", "my_gru", "GPU-hours", "by the clock", "missing here: nothing", "35% of 66.9"):
        assert words in shown
    assert not (tmp_path / "results" / "runs").exists()
    assert call(monkeypatch, *given, "data.path=/not/there", "hardware=a100", "utilisation=0.1") == 0
    shown = capfd.readouterr().out
    assert "missing here: data.path is '/not/there'" in shown
    assert "10% of 19.5" in shown
    assert "h100" not in shown
    for wrong, words in (("hardware=b200", "choose any of a100, h100"), ("utilisation=2", "utilisation is 2.0")):
        assert call(monkeypatch, *given, "data.path=x", wrong) == 2
        captured = capfd.readouterr()
        assert captured.err.startswith("error: ")
        assert words in captured.err
        assert len(captured.err.splitlines()) == 1
