"""Faults of TTT-MLP's backward kernel that the comparison with autograd has to find, and races for the schedules."""

import itertools

import pytest
import torch

from tests.ttt_impl.kernels.cases import error
from tests.ttt_impl.kernels.cases_mlp import Case, Result, case, forward
from tests.ttt_impl.kernels.mutation import Mutant, Mutants
from tests.ttt_impl.kernels.test_mlp_backward_emulation import GRADIENT, Upstream, added, backward, reference
from ttt_impl.kernels import emulation, operators

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
SCHEDULES = list(itertools.product((0, 1, 2), (0, 1)))
UNDO = 1e-4
"""Relative error allowed to the first state, rebuilt."""
X2DW2, BACK = "mma(y, pack(dW.two(s, m)), right(x[m]));", "mma(y, pack(W.w2[s][m]), right(back[m]));"
GHAT_DW1, DW1 = "mma(dk, transposed(pack(dw)), right(u[m]));", "mma(dw, d.dz1bar[m], q); mma(dw, d.dz1[m], k);"
BIASES = "read_biases(W, from + 2 * DIM * HIDDEN, from + 2 * DIM * HIDDEN + HIDDEN, l);"
DX2 = "mma(y[m], now.x2bar[m], right(transposed_lower(ds2)))"
DX, DTOK = "gamma * gamma * dgx - in.mean_gxx * y[i] - gx[i] * mean_yx", "total.tok_last -= closed * inner_product"
FAULTS = [
    Mutant("W1 not undone", {"if (known) reload(t); else undo1(t, in);": "if (known) reload(t);"}),
    Mutant("W1 undone with the wrong sign", {"negated(update(t, m))": "update(t, m)"}),
    Mutant("b1 not undone", {"add_tokens(b1 + 16 * m, u, 1.f, l);": ""}),
    Mutant("W2 not undone", {"if (!known) undo2(now, in, tok_last);": ""}),
    Mutant("b2 not undone", {"add_tokens(b2 + 16 * s, g, tok_last, l)": "void()"}),
    Mutant("biases of a checkpoint read elsewhere", {BIASES: BIASES.replace("from + 2 * DIM * HIDDEN,", "from,")}),
    Mutant("a mini-batch left open updates", {"h.open(t) ? 0.f : p.tok[TOKENS - 1]": "p.tok[TOKENS - 1]"}),
    Mutant("a mini-batch left open counts for dtok", {"h.open(t) ? 0.f : 1.f": "1.f"}),
    Mutant("no P1 in Z1bar", {"mma(z[m], now.ghat1[m], right(now.minus_p1));": ""}),
    Mutant("no P2 in Z2bar", {"mma(zbar, columns(in.ghat2, s, l), right(minus_p2));": ""}),
    Mutant("target V", {"ln.beta[i] - vv[i] + kk[i]": "ln.beta[i] - vv[i]"}),
    Mutant("gelu' of the keys for the queries", {"product(y[m], now.slope_bar[m])": "product(y[m], now.slope[m])"}),
    Mutant("no gelu''", {"sum(product(y[m], now.bend[m]), d.dz1[m])": "sum(zero(), d.dz1[m])"}),
    Mutant("no dZ2 W2 in dX2", {"sum(product(y[m], now.slope[m]), d.dz1[m])": "sum(zero(), d.dz1[m])"}),
    Mutant("no dS2 X2 in dX2bar", {"mma(y[m], now.x2[m], right(ds2));": ""}),
    Mutant("X2 for X2bar in dX2", {DX2: DX2.replace("x2bar", "x2")}),
    Mutant("dS2 not transposed", {"right(transposed_lower(ds2))": "right(ds2)"}),
    Mutant("no P1 in dGhat1", {"mma(y[m], d.dz1bar[m], right(transposed_lower(now.minus_p1)));": ""}),
    Mutant("no db1 in dGhat1", {"y[m] = bias_tile(db1 + 16 * m, l);": "y[m] = zero();"}),
    Mutant("no P2 in dGhat2", {"mma(y, columns(dz2bar_tile, s, l), right(transposed_lower(minus_p2)))": "void()"}),
    Mutant("no db2 in dGhat2", {"y = times(-tok_last, y);": "y = zero();"}),
    Mutant("no X2 dW2 in dGhat2", {X2DW2: ""}),
    Mutant("no dback W2 in dGhat2", {BACK: ""}),
    Mutant("dtok without <Ghat1, KdW>", {f"{DTOK}(y[m], now.ghat1[m]);": ""}),
    Mutant("dtok without <X2, GdW>", {f"{DTOK}(y[m], now.x2[m]);": ""}),
    Mutant("dtok without <Ghat2, db2>", {f"{DTOK}(y, columns(in.ghat2, s, l));": ""}),
    Mutant("dtok without D1", {"total.tok -= D * s1[place];": ""}),
    Mutant("dtok without D2", {"causal(r, k, l) ? D.at(r, k) * S.at(r, k) : 0.f": "0.f"}),
    Mutant("no mask on D1", {"j <= o.token ? sum_scores(shares, place) : 0.f": "sum_scores(shares, place)"}),
    Mutant("r does not depend on Z2", {"dx[i] - in.r * in.x[i] * lr * mean_yG": "dx[i]"}),
    Mutant("no gx mean(y x)", {DX: "gamma * gamma * dgx - in.mean_gxx * y[i]"}),
    Mutant("no mean(gx x) y", {DX: "gamma * gamma * dgx - gx[i] * mean_yx"}),
    Mutant("no projection in LayerNorm's backward", {"r * (d[i] - mean_d - x[i] * mean_dx)": "r * (d[i] - mean_d)"}),
    Mutant("half of dgamma", {"2.f * gamma * in.x[i]": "gamma * in.x[i]"}),
    Mutant("no dbeta of the loss", {"total.beta[i] += gamma * dgx;": ""}),
    Mutant("no dS1 K in dQ", {"mma(dq, columns(in.k, s, l), right(ds1))": "void()"}),
    Mutant("no dS1 Q in dK", {"mma(dk, columns(in.q, s, l), right(transposed_lower(ds1)))": "void()"}),
    Mutant("no Ghat1 dW1 in dK", {GHAT_DW1: ""}),
    Mutant("no target in dK", {"dk[i] = -dk[i];": "dk[i] = 0.f;"}),
    Mutant("dW1 moved on before dK reads it", {
        GHAT_DW1: f"mma(dw, d.dz1bar[m], q); {GHAT_DW1}", DW1: "mma(dw, d.dz1[m], k);",
    }),
    Mutant("no dback Ghat2 in dW2", {"mma(w, g, right(d.dback[m]));": ""}),
    Mutant("X2bar for X2 in dW2", {"mma(w, z, right(now.x2[m]));": "mma(w, z, right(now.x2bar[m]));"}),
    Mutant("half of db1", {"add_tokens(db1 + 16 * m, d.dz1[m], 1.f, l);": ""}),
    Mutant("half of db2", {"add_tokens(db2 + 16 * s, z, 1.f, l);": ""}),
]  # fmt: skip
FETCH, WAIT = "fetch_late(in, t); fetch_early(t - 1);", "copy_wait<0>(); // this thread's part of k, q, Ghat2 is here"
RACES = [
    *(Mutant(f"no barrier {i}", {f"sync_cta(); // {i}:": ""}) for i in range(6)),
    *(Mutant(f"no barrier where {why}", {f"sync_cta(); // {why}": ""})
      for why in ("sums and shares are used up", "everyone's totals")),
    *(Mutant(f"no barrier of a warp for {what}", {f"sync_warp(); // {what}": ""})
      for what in ("a bias", "the biases of a checkpoint")),
    Mutant("no wait for k, q, Ghat2", {WAIT: ""}),
    Mutant("no wait for v, dout", {"copy_wait<1>(); // this thread's part of v, dout": ""}),
    Mutant("the next tiles fetched before barrier 0", {WAIT: f"copy_wait<0>(); {FETCH}", FETCH: ""}),
]  # fmt: skip
REBUILT = Mutant("the first state for its gradient", {
    "dW.get(W);": "", "read_biases(W, biases + HIDDEN + DIM, db2, l);": "read_biases(W, biases, b2, l);",
})  # fmt: skip


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> Mutants:
    return Mutants("ttt_mlp_bwd.cu", [*FAULTS, *RACES, REBUILT], tmp_path_factory.mktemp("mutants"))


@pytest.fixture(autouse=True)
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "EVERY", 1)


class Problem:
    """Three mini-batches: one undone, two behind checkpoints, of which one is left open; and the gradients in float64.

    A wide gamma makes the means of gamma^2 x large enough to be missed.
    """

    def __init__(self) -> None:
        x = case(44, seed=5, rate=2.0)
        self.x = x._replace(gamma=2 * x.gamma - 1)
        self.d = Upstream(self.x)
        self.exact = reference(self.x, self.d)
        self.saved: Result = forward(self.x, save=True)
        self.calm = self.run()

    def run(self) -> Case:
        return backward(self.x, self.d, self.saved)

    def worst(self, mine: Case) -> float:
        """Error over bound; twice the bound for the sixteen numbers of dtok, which cancel."""
        a, b = added(mine, self.d), added(self.exact, self.d)
        return max(error(a[name], b[name]) / GRADIENT / (1 + (name == "tok")) for name in a)

    def differs(self, order: int, eager: int) -> bool:
        with emulation.schedule(order, eager):
            return not all(map(torch.equal, self.run(), self.calm))


@pytest.fixture(scope="module")
def problem() -> Problem:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "EVERY", 1)
        return Problem()


@pytest.mark.parametrize("name", [m.name for m in FAULTS])
def test_every_fault_is_found(name: str, problem: Problem, mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem.worst(problem.calm) < 1
    with mutants.active(name, monkeypatch):
        assert problem.worst(problem.run()) > 1


@pytest.mark.parametrize(("order", "eager"), SCHEDULES)
def test_every_schedule_gives_the_same_bits(order: int, eager: int, problem: Problem) -> None:
    assert not problem.differs(order, eager)


@pytest.mark.parametrize("name", [m.name for m in RACES])
def test_every_race_is_found(name: str, problem: Problem, mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    with mutants.active(name, monkeypatch):
        assert any(problem.differs(order, eager) for order, eager in SCHEDULES)


def test_undoing_all_updates_rebuilds_the_first_state(mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel made to hand back its weights, after 16 mini-batches without a checkpoint."""
    monkeypatch.setattr(operators, "EVERY", 1000)
    x = case(256)
    saved = forward(x, save=True)
    with mutants.active(REBUILT.name, monkeypatch):
        mine = backward(x, Upstream(x), saved)
    for a, first, last in ((mine.start1, x.start1, saved.end1), (mine.start2, x.start2, saved.end2)):
        assert (a - first).norm() < UNDO * last.norm()
