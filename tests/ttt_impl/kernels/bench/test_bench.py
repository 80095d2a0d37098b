"""The benchmark without a GPU: floors, turns, records, tables, who takes part, and what it says when it cannot run."""

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ttt_impl.kernels import emulation, operators
from ttt_impl.kernels.bench import __main__ as command
from ttt_impl.kernels.bench import correctness, official, others
from ttt_impl.kernels.bench.candidates import candidates
from ttt_impl.kernels.bench.clock import REPEATS, WARM, take_turns
from ttt_impl.kernels.bench.floors import Ceilings, floors, moved, operations
from ttt_impl.kernels.bench.records import Ceiling, Check, Provenance, Record, Timing, provenance, read, write
from ttt_impl.kernels.bench.table import markdown, passed
from ttt_impl.kernels.bench.work import Work, plan

CPU = torch.device("cpu")
SMALL = Work("linear", "forward", 1, 32, 2, 64)


class FakeClock:
    """A call takes as long as it returns; the order of calls is kept."""

    def seconds(self, call: Callable[[], object]) -> float:
        return float(call())  # type: ignore[arg-type]


class RunningClock:
    """Calls are made, and each takes a millisecond."""

    def seconds(self, call: Callable[[], object]) -> float:
        call()
        return 1e-3


@pytest.mark.parametrize(
    ("work", "bytes_", "flops"),
    [
        (Work("linear", "forward", 1, 16, 1), 16 * 516 + 2 * 16640, 16 * 28672),
        (Work("mlp", "forward", 1, 16, 1), 16 * 516 + 2 * 132352, 16 * 249856),
        (Work("linear", "train", 2, 16, 3), 6 * (16 * (516 + 904 + 256) + 4 * 16640), 96 * (28672 + 86016)),
        (Work("mlp", "train", 1, 16, 1), 16 * (516 + 904 + 1280) + 4 * 132352, 16 * (249856 + 720896)),
        (Work("linear", "decode", 1, 999, 1), 516 + 16640 * 17 / 16 + 512 * 8.5, 28672),
    ],
)
def test_floors_are_those_of_the_design(work: Work, bytes_: float, flops: float) -> None:
    assert moved(work) == pytest.approx(bytes_)
    assert operations(work) == pytest.approx(flops)


def test_the_chain_is_as_long_as_the_sequence() -> None:
    """39 µs for 2048 tokens, whatever the batch: the prediction for an H200."""
    ceilings = Ceilings(4.3e12, 788e12)
    one, many = (floors(Work("linear", "forward", batch, 2048), ceilings) for batch in (1, 64))
    assert one.latency == many.latency == pytest.approx(39.1e-6, rel=1e-2)
    assert many.memory == pytest.approx(64 * one.memory)
    assert one.tensor == pytest.approx(operations(Work("linear", "forward", 1, 2048)) / 788e12)
    assert floors(Work("mlp", "train", 1, 2048), ceilings).latency is None
    assert floors(Work("linear", "decode", 1, 2048), ceilings).latency is None


def test_candidates_take_turns() -> None:
    order: list[str] = []

    def candidate(name: str, seconds: float) -> Callable[[], float]:
        return lambda: order.append(name) or seconds  # type: ignore[func-returns-value]

    times = take_turns({"a": candidate("a", 0.5), "b": candidate("b", 0.25)}, FakeClock(), 0.0)
    assert order == ["a", "b"] * (WARM + REPEATS)
    assert times["a"].seconds == [0.5] * REPEATS
    order.clear()
    assert len(take_turns({"a": candidate("a", 0.5), "b": candidate("b", 0.25)}, FakeClock(), 5.0)["b"].seconds) == 20


def test_who_fails_leaves_with_the_reason() -> None:
    calls = iter(range(100))

    def fails() -> float:
        if next(calls) == WARM + 2:
            raise RuntimeError("CUDA out of memory.\nTried to allocate")
        return 1.0

    times = take_turns({"a": fails, "b": lambda: 1.0}, FakeClock(), 0.0)
    assert (len(times["a"].seconds), times["a"].failure) == (2, "RuntimeError: CUDA out of memory.")
    assert (len(times["b"].seconds), times["b"].failure) == (REPEATS, "")


def records() -> list[Record]:
    floor = {"memory": 1e-5, "tensor": 2e-5, "latency": None}
    key = ("linear", "forward", 4, 2048, 32, 64)
    return [
        Provenance("H", "1.2", "9.0", "2.13", "13.0", "3.11", "abc", "2026-01-01T00:00:00+00:00"),
        Ceiling(4.3e12, 7.88e14),
        Check("ttt_linear_fwd", 64, 40, "output", 2.5e-3, 5e-3),
        Check("ttt_linear_fwd", 64, 512, "W1", 6e-3, 3e-3),
        Check("ttt_linear_bwd", 64, 40, "compilation", None, None, "nvcc: not found"),
        Timing(*key, "fused-cuda", 8192, floor, [1e-4, 3e-4, 2e-4]),
        Timing(*key, "dual form", 8192, floor, [0.02]),
        Timing(*key, "fla TTT-Linear", 8192, floor, reason="needs flash-linear-attention"),
    ]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    write(file, records()[:2])
    write(file, records()[2:])
    assert read(file) == records()
    assert [passed(r) for r in read(file) if isinstance(r, Check)] == [True, False, False]


def test_the_table_is_drawn_from_the_records() -> None:
    text = markdown(records())
    for line in (
        "H (compute capability 9.0, driver 1.2), torch 2.13, CUDA 13.0, commit abc, 2026-01-01T00:00:00+00:00.",
        "Measured: copies 4.30 TB/s, bf16 products 788 TFLOP/s.",
        "| `ttt_linear_fwd` | 64 | 2 | 2.00 | W1 at 512 tokens |",
        "| `ttt_linear_bwd` | 64 | 1 |  | compilation at 40 tokens: nvcc: not found |",
        "**TTT-linear forward**, batch 4, length 2048, 32 heads of 64",
        "| fused-cuda | 200.0 | 40,960,000 | 5 % | 10 % |  |",
        "| dual form | 20000.0 | 409,600 |  |  |  |",
        "| fla TTT-Linear | needs flash-linear-attention | | | | |",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize("task", ["forward", "train", "decode"])
@pytest.mark.parametrize("learner", ["linear", "mlp"])
def test_everyone_takes_part_or_says_why(learner: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: the plain paths and attention run, the kernels refuse its tokens, packages are missing."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    work = SMALL._replace(learner=learner, task=task)  # type: ignore[arg-type]
    found = list(command.compare(work, Ceilings(1e12, 1e12), RunningClock(), CPU, None, 0.0))
    ran = {record.candidate for record in found if record.seconds}
    assert ran >= {"dual form", "attention (SDPA)"} | ({"dual form, torch.compile"} if task != "decode" else set())
    reasons = {record.candidate: record.reason for record in found}
    assert "fused-cuda" in reasons["fused-cuda"]
    assert "cannot be taken" in reasons["fused-cuda"]
    assert all(record.reason for record in found if not record.seconds)
    assert {record.tokens for record in found} == {1 if task == "decode" else 32}


def test_what_takes_minutes_to_compile_is_left_out() -> None:
    _, missing = candidates(Work("linear", "forward", 1, 1024, 1), CPU, None)
    assert "64 mini-batches takes minutes to unroll; at most 32" in missing["dual form, torch.compile"]


def test_packages_are_asked_for_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, object]] = []

    def operator(*x: torch.Tensor, **options: object) -> tuple[torch.Tensor, None]:
        called.append(options)
        return x[0] * x[1].sum() * x[2].sum() * sum(t.sum() for t in x[3:]), None

    module = types.ModuleType("fla.ops.ttt")
    module.fused_chunk_ttt_linear = operator  # type: ignore[attr-defined]
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "fla.ops.ttt", module)
    others.fla(SMALL, CPU)()
    gradients = others.fla(SMALL._replace(task="train"), CPU)()
    assert called == [{"chunk_size": 16}] * 2
    assert len(gradients) == 6  # type: ignore[arg-type]
    with pytest.raises(ImportError, match="over sequences only"):
        others.fla(SMALL._replace(task="decode"), CPU)


@pytest.mark.parametrize(("learner", "count"), [("linear", 11), ("mlp", 14)])
def test_the_official_kernels_are_called_as_they_are_built(
    learner: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two weights or four, LN's two, the pickers of the last token, three views, rates, output: all in fp16."""
    given: list[torch.Tensor] = []
    module = types.SimpleNamespace(**{f"ttt_{learner}_prefill_fp16": lambda *x: given.extend(x)})
    monkeypatch.setattr(official, "_module", lambda name, checkout: module)
    official.prefill(SMALL._replace(learner=learner), CPU, tmp_path)()
    assert len(given) == count
    assert {x.dtype for x in given} == {torch.float16}
    assert given[-2].shape == (1, 2, 2, 16, 16)
    monkeypatch.undo()
    with pytest.raises(ImportError, match=rf"holds no built tk_ttt_{learner}_prefill\*\.so; build it there"):
        official.prefill(SMALL._replace(learner=learner), CPU, tmp_path)
    with pytest.raises(ImportError, match="whole mini-batches of heads of 64, forward only"):
        official.prefill(SMALL._replace(task="train"), CPU, tmp_path)


@pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
def test_correctness_is_checked_at_every_kernel_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the emulator, at the one head dimension that other tests have compiled."""
    monkeypatch.setattr(operators, "NARROW_HEADS", 2)
    monkeypatch.setattr(correctness, "KERNELS", {
        name: kernel._replace(widths=(64,)) for name, kernel in correctness.KERNELS.items()
    })  # fmt: skip
    found = list(correctness.check_all(CPU, quick=True))
    assert {record.kernel for record in found} == set(correctness.KERNELS)
    assert all(map(passed, found))
    assert all(map(passed, correctness.check("ttt_linear_bwd", 64, 112, CPU)))
    monkeypatch.setattr(operators, "launch", lambda *_: 1 / 0)
    (broken,) = correctness.check("ttt_linear_fwd", 64, 40, CPU)
    assert (broken.what, broken.reason) == ("launch", "ZeroDivisionError: division by zero")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--quick"]) == 2
    assert capsys.readouterr().err == "the benchmark of the kernels needs a CUDA device, and torch finds none\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert command.main(["--official", "/nowhere"]) == 2
    assert "--official /nowhere is no folder" in capsys.readouterr().err


def test_a_run_leaves_records_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(command, "run", lambda *_: iter(records()))
    assert command.main(["--out", str(tmp_path / "new")]) == 1
    assert read(tmp_path / "new" / "records.jsonl") == records()
    assert (tmp_path / "new" / "table.md").read_text() == markdown(records())
    monkeypatch.setattr(command, "run", lambda *_: iter(records()[:3]))
    assert command.main(["--out", str(tmp_path / "new")]) == 0
    assert read(tmp_path / "new" / "records.jsonl") == records()[:3]


def test_provenance_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = provenance(CPU)
    assert (found.device, found.capability, found.torch) == ("H", "9.0", torch.__version__)
    assert found.driver
    assert found.commit


def test_plans_fit_their_purpose() -> None:
    quick, whole = plan(True), plan(False)
    assert len(quick) < len(whole)
    assert {(w.learner, w.task) for w in quick} == {(w.learner, w.task) for w in whole}
    assert {w.batch for w in whole if w.task == "decode"} == {1, 16, 64}
