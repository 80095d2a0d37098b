"""Faults of the backward kernel that the comparison with autograd has to find, and races for the schedules."""

import itertools

import pytest
import torch

from tests.ttt_impl.kernels.cases import Case, case, error
from tests.ttt_impl.kernels.mutation import Mutant, Mutants
from tests.ttt_impl.kernels.test_linear_backward_emulation import GRADIENT, Upstream, backward, reference
from ttt_impl.kernels import emulation, operators, self_check

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
SCHEDULES = list(itertools.product((0, 1, 2), (0, 1)))
SLOPE, DX = "mean_ax_dgx - 2.f * in.mean_gxx * o.c2 + mean_dG_G", "gamma[r] * gamma[r] * dgx - mean_gxx * dh - gx * c2"
A_DGX = "each * sum[2] - o.mean_dh * mean_a - o.c2 * in.mean_ax"
FAULTS = [
    Mutant("no undo", {"rank16_update(W, negated(U), in.k, l)": "void()"}),
    Mutant("undo of the wrong sign", {"negated(U)": "U"}),
    Mutant("a mini-batch left open counts", {"h.open(t) ? 0.f : full_rate": "full_rate"}),
    Mutant("P not transposed", {"right(transposed_lower(minus_p))": "right(minus_p)"}),
    Mutant("no K dW in dGhat", {"-tok_last * kdw.v[i >> 2][i & 3]": "0.f"}),
    Mutant("no db in K dW", {"bias_tile(dW.b)": "Acc{}"}),
    Mutant("no mask on dS", {"seen ? rates[r] * D.at(r, k) : 0.f": "rates[r] * D.at(r, k)"}),
    Mutant("dS not transposed", {"transposed_lower(dS)": "dS"}),
    Mutant("dtok without the bias", {"D.at(r, k) * S.at(r, k)": "D.at(r, k) * (S.at(r, k) - 1.f)"}),
    Mutant("dtok without the update", {"total += partial[w]": "total += 0.f"}),
    Mutant("no dS K in dQ", {"mma_tile(dq, dS, in.k, 0, n0, l)": "void()"}),
    Mutant("no residual in dQ", {"dq.at(r, k) = residual.at(r, k)": "dq.at(r, k) = 0.f"}),
    Mutant("no Ghat dW in dK", {"-tok_last * dk.at(r, k) - dv.at(r, k)": "-dv.at(r, k)"}),
    Mutant("no target in dK", {"-tok_last * dk.at(r, k) - dv.at(r, k)": "-tok_last * dk.at(r, k)"}),
    Mutant("no dZ W in dK", {"contract_n(dk, dz_tile, w_tile, n0, l)": "void()"}),
    Mutant("W for dW in dK", {"contract_n(dk, ghat_tile, dw_tile, n0, l)": "contract_n(dk, ghat_tile, w_tile, n0, l)"}),
    Mutant("half of dgamma", {"2.f * gamma[r] * xx + err.at(r, k)": "gamma[r] * xx + err.at(r, k)"}),
    Mutant("no dbeta of the loss", {"d.beta[r] += gamma[r] * dgx": "d.beta[r] += 0.f"}),
    Mutant("no mean of dG G", {SLOPE: "mean_ax_dgx - 2.f * in.mean_gxx * o.c2"}),
    Mutant("half of c2", {SLOPE: "mean_ax_dgx - in.mean_gxx * o.c2 + mean_dG_G"}),
    Mutant("no mean of dx", {"dx - mean_dx - xx * slope": "dx - xx * slope"}),
    Mutant("no mean of dh", {"dh - mean_dh - xx * c2": "dh - xx * c2"}),
    Mutant("no gx c2", {DX: "gamma[r] * gamma[r] * dgx - mean_gxx * dh"}),
    Mutant("no mean of a x", {A_DGX: "each * sum[2] - o.mean_dh * mean_a"}),
    Mutant("dlr without the mean of gx", {"gx_y - sum[0] * in.mean_gx": "gx_y"}),
    Mutant("no projection in the output", {"s.x * (gamma[r] * g - s.z - xo * s.w)": "s.x * (gamma[r] * g - s.z)"}),
    Mutant("no mean in the output", {"s.x * (gamma[r] * g - s.z - xo * s.w)": "s.x * (gamma[r] * g - xo * s.w)"}),
    Mutant("dZ meets Q in dW", {"rank16_update(dW, dz_t, in.k, l)": "rank16_update(dW, dz_t, in.q, l)"}),
]  # fmt: skip
FETCH, WAIT = "fetch_stage(a, h, shared, t + 1 - STAGES);", "copy_wait<STAGES - 2>(); // this thread's part"
UNSEEN = ("a mini-batch left open counts", "no mean of dh", "dlr without the mean of gx")
"""The first matters only if the final state has a gradient; two means take the wider gamma below to show."""
RACES = [
    *(Mutant(f"no barrier {i}", {f"sync_cta(); // {i}:": ""}) for i in (1, 2, 3, 4)),
    *(Mutant(f"no barrier of a warp for {name}", {f"sync_warp(); // {name}": ""})
      for name in ("inner statistics", "outer statistics", "second statistics")),
    Mutant("no wait for the copies", {WAIT: ""}),
    Mutant("the next tile fetched before barrier 4", {
        FETCH: f"if (t == h.count - 1) {FETCH}",
        WAIT: "fetch_stage(a, h, shared, t - STAGES); copy_wait<STAGES - 1>();",
    }),
]  # fmt: skip


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> Mutants:
    return Mutants("ttt_linear_bwd.cu", FAULTS + RACES, tmp_path_factory.mktemp("mutants"))


@pytest.fixture(autouse=True)
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "EVERY", 3)


@pytest.fixture(scope="module")
def problem() -> tuple[Case, Upstream, Case]:
    """Five mini-batches, the last one open, a checkpoint at the fourth; and the gradients in float64.

    A wide gamma makes the means of gamma^2 x large enough to be missed.
    """
    x = case(77, heads=2, seed=5)
    x = x._replace(gamma=2 * x.gamma - 1)
    d = Upstream(x)
    return x, d, reference(x, d)


@pytest.mark.parametrize("name", [m.name for m in FAULTS])
def test_every_fault_is_found(
    name: str, problem: tuple[Case, Upstream, Case], mutants: Mutants, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, d, exact = problem
    assert worst(backward(x, d), exact) < 1
    with mutants.active(name, monkeypatch):
        assert worst(backward(x, d), exact) > 1


@pytest.mark.parametrize("name", [m.name for m in FAULTS if m.name not in UNSEEN])
def test_the_self_check_refuses_the_kernel(name: str, mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    with mutants.active(name, monkeypatch):
        assert "is off by" in str(self_check.complaint.__wrapped__("ttt_linear_bwd", 64, torch.device("cpu")))


def worst(mine: Case, exact: Case) -> float:
    """Error over bound; twice the bound for the sixteen numbers of dtok, which cancel."""
    bounds = [GRADIENT * (1 + (name == "tok")) for name in Case._fields]
    return max(error(a, b) / bound for a, b, bound in zip(mine, exact, bounds, strict=True))


@pytest.mark.parametrize(("order", "eager"), SCHEDULES)
def test_every_schedule_gives_the_same_bits(order: int, eager: int, problem: tuple[Case, Upstream, Case]) -> None:
    x, d, _ = problem
    calm = backward(x, d)
    with emulation.schedule(order, eager):
        assert all(map(torch.equal, backward(x, d), calm))


@pytest.mark.parametrize("name", [m.name for m in RACES])
def test_every_race_is_found(
    name: str, problem: tuple[Case, Upstream, Case], mutants: Mutants, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, d, _ = problem
    calm = backward(x, d)
    with mutants.active(name, monkeypatch):
        assert any(differs(order, eager, x, d, calm) for order, eager in SCHEDULES)


def differs(order: int, eager: int, x: Case, d: Upstream, calm: Case) -> bool:
    with emulation.schedule(order, eager):
        return not all(map(torch.equal, backward(x, d), calm))
