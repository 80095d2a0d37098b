"""Benchmarks: whose turn it is under a fake clock, a ratio's interval, and rows for what is missing or wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from baselines.config import SizeConfig
from baselines.rivals.hf import transformers_llama, transformers_mamba
from harness.bench import cases
from harness.bench.__main__ import main
from harness.bench.cases import CASES, MODELS, Case, build
from harness.bench.contest import contest, ratio
from harness.bench.gemm import GemmWork
from harness.bench.run import run
from harness.bench.same import gradient_difference, logits_difference
from harness.measure.clock import Clock, CpuClock
from harness.records import Benchmark, Record, RecordStore
from harness.statistics import median_interval
from ttt_impl.cpu.linear import Linear

TINY = SizeConfig(parameters=60_000, tolerance=0.05, hidden_size=32, num_layers=2, head_dim=16)
OFFICIAL = """
from types import SimpleNamespace
import ttt_impl
from ttt_impl import TTTConfig

class TTTForCausalLM(ttt_impl.TTTForCausalLM):
    def forward(self, input_ids, cache_params=None, use_cache=None, return_dict=None):
        assert return_dict
        out = super().forward(input_ids, past_key_values=cache_params, use_cache=use_cache)
        return SimpleNamespace(logits=SCALE * out.logits, cache_params=out.past_key_values)
"""


class HandClock(CpuClock):
    """A clock that the timed work moves by hand; by wall twice as much passes."""

    now = 0.0

    def mark(self) -> tuple[float, float]:
        return self.now, 2 * self.now


class Piece:
    """A side whose turn is two calls of so many seconds, a little more in each round."""

    def __init__(self, name: str, seconds: float, clock: HandClock, diary: list[str]) -> None:
        self.name, self.seconds, self.clock, self.diary = name, seconds, clock, diary

    def turn(self, clock: Clock) -> list[float]:
        self.diary.append(self.name)
        marks = [clock.mark()]
        for _ in range(2):
            self.clock.now += self.seconds
            marks.append(clock.mark())
        self.seconds += 1
        self.clock.now += 100  # untimed
        return clock.seconds(marks)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (family, options, _) in MODELS.items():
        monkeypatch.setitem(cases.MODELS, name, (family, options, TINY))


def rows(folder: Path) -> list[Record]:
    return list(RecordStore(folder))


def test_sides_take_turns_and_each_turn_is_summed() -> None:
    clock, diary = HandClock(), []
    sides = {name: Piece(name, seconds, clock, diary) for name, seconds in (("ours", 1.0), ("rival", 3.0))}
    times = contest({**sides}, 3, clock)
    assert diary == ["ours", "rival"] * 3
    assert times["ours"].cpu == [2.0, 4.0, 6.0]
    assert times["rival"].cpu == [6.0, 8.0, 10.0]
    assert times["ours"].wall == [4.0, 8.0, 12.0]
    assert times["rival"].wall == [12.0, 16.0, 20.0]


def test_a_ratio_is_taken_within_each_round() -> None:
    ours, theirs = [1.0, 2.0, 4.0, 1.0, 1.0, 1.0], [3.0, 6.0, 12.0, 4.0, 2.0, 3.0]
    assert ratio(theirs, ours) == (3.0, 2.0, 4.0)
    assert np.isnan(ratio(theirs[:5], ours[:5])[1:]).all()


@pytest.mark.parametrize(("n", "k"), [(6, 0), (8, 0), (9, 1), (12, 2), (25, 7)])
def test_the_median_s_interval_is_of_two_order_statistics(n: int, k: int) -> None:
    """k + 1 is the lower rank; the values are those of tables of the sign test."""
    values = np.random.default_rng(n).permutation(n).astype(float)
    assert median_interval(values) == (k, n - 1 - k)


def test_the_median_s_interval_holds_the_median() -> None:
    samples = np.random.default_rng(0).lognormal(size=(4000, 9))
    covered = np.mean([low <= 1.0 <= high for low, high in map(median_interval, samples)])
    assert 0.95 <= covered < 0.975  # 1 - 2 * (1 + 9) / 2^9 = 0.961


def test_gemms_are_those_of_every_linear_layer(tiny: None) -> None:
    model = build("transformer-2m")
    linear = [m for m in model.model.modules() if isinstance(m, nn.Linear)]
    last, weights = model.model.model.layers[-1], sum(m.weight.numel() for m in linear)
    late = [model.model.lm_head, last.self_attn.o_proj, *(m for m in last.mlp.modules() if m in linear)]
    spared = 8 * sum(m.weight.numel() for m in late)
    assert len(late) == 5
    for train, multiplied in ((True, 10 * weights), (False, 10 * weights - spared)):
        work = GemmWork(model, 2, 5, train=train)
        assert sum(len(x) * weight.numel() for x, weight, *_ in work.products) == multiplied
        x, weight, y, grad_x, grad_weight = work.products[0]
        torch.testing.assert_close(y, x @ weight.T)
        assert grad_x.any() or not train
        if train:
            torch.testing.assert_close(grad_x, y @ weight)
            torch.testing.assert_close(grad_weight, y.T @ x)


@pytest.mark.parametrize("name", ["mamba-2m", "transformer-2m"])
def test_transformers_models_compute_the_same(name: str, tiny: None) -> None:
    ours = build(name)
    rival = (transformers_mamba if name == "mamba-2m" else transformers_llama)(ours)
    assert not any(isinstance(module, Linear) for module in rival.model.modules())
    assert rival.model is not ours.model
    assert all(logits_difference(ours, rival, work) < 1e-5 for work in ("train_step", "prefill", "decode"))
    assert gradient_difference(ours, rival) < 1e-4
    with torch.no_grad():
        next(iter(rival.model.parameters())).add_(1e-2)
    assert logits_difference(ours, rival, "prefill") > 1e-4


@pytest.mark.parametrize(("scale", "code"), [("1.0", 0), ("1.1", 1)])
def test_rows_and_table_of_the_official_code(
    scale: str, code: int, tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ttt.py").write_text(OFFICIAL + f"SCALE = {scale}\n")
    works = ("train_step", "prefill", "decode")
    chosen = [Case("ttt_linear-3.3m", work, 32, "official") for work in works]
    assert run(chosen, tmp_path / "ttt.py", 2, tmp_path) == code
    for case, row in zip(chosen, rows(tmp_path), strict=True):
        assert isinstance(row.values, Benchmark)
        assert (row.status, row.model, row.length) == (("failed" if code else "ok"), case.ours, 32)
        assert row.values.work == case.work
        assert [len(row.values.cpu_seconds[side]) for side in ("ours", "rival", "gemm")] == [2, 2, 2]
        assert min(row.values.wall_seconds["ours"]) > 0
        assert ("logits differ by" in row.message) == bool(code)
        assert row.values.rival_path == "official"
    assert (tmp_path / "table.md").read_text().count("| ttt_linear-3.3m |") == 3


def test_a_row_of_two_sequences_says_so_and_counts_both(tmp_path: Path, tiny: None) -> None:
    case = Case("ttt_linear-3.3m", "train_step", 16, "transformer-3.3m", batch=2)
    assert run([case], None, 1, tmp_path) == 0
    (row,) = rows(tmp_path)
    assert isinstance(row.values, Benchmark)
    assert (row.values.batch, row.values.tokens) == (2, 32)
    assert "| training step, 2 × 16 |" in (tmp_path / "table.md").read_text()
    assert case.name == "ttt_linear-3.3m/train_step-2x16/transformer-3.3m"


def test_what_is_not_installed_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: None) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    chosen = [case for case in CASES if case.rival in ("mambapy", "official")]
    assert run([case.shortened() for case in chosen], None, 1, tmp_path) == 0
    for case, row in zip(chosen, rows(tmp_path), strict=True):
        assert row.status == "unsupported"
        assert ("pip install mambapy" if case.rival == "mambapy" else "--official PATH") in row.message
    table = (tmp_path / "table.md").read_text()
    assert table.count("mambapy is not installed") == sum(case.rival == "mambapy" for case in chosen)


def test_operators_of_ours_agree(tmp_path: Path) -> None:
    chosen = [Case(name, "operator", 32, "autograd") for name in ("ttt_linear", "ttt_mlp")]
    scans = [Case("selective_scan", "operator", 32, rival) for rival in ("transformers", "scan")]
    assert run([*chosen, *scans], None, 1, tmp_path) == 0
    assert all(0 < row.values.gradient_difference < 1e-4 for row in rows(tmp_path))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--only mamba nothing", "--only mamba nothing: no such row; choose words of selective_scan/operator"),
        ("--official /not/there", "--official /not/there: no such file"),
        ("--rounds 0", "--rounds 0: must be at least 1"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1


def test_quick_is_an_eighth(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--list"])
    assert "mamba-2m/train_step-128/transformers" in capsys.readouterr().out.splitlines()
    main(["--list"])
    assert capsys.readouterr().out.splitlines() == [case.name for case in CASES]
