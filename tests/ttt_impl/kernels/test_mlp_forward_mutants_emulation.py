"""Faults of TTT-MLP's forward kernel that the comparison with the primal form has to find, and races."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from tests.ttt_impl.kernels.cases_mlp import Case, Result, case, excess, forward, same
from tests.ttt_impl.kernels.mutation import Mutant, Mutants
from tests.ttt_impl.kernels.test_mlp_forward_emulation import segments
from ttt_impl.kernels import emulation

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
SCHEDULES = list(itertools.product((0, 1, 2), (0, 1)))
WAIT, FETCH = "copy_wait<STAGES - 3>();", "fetch_stage(p, h, shared, t + STAGES - 1);"
RESTORE = "restore_keys<THREADS>(stage(shared, 0).k, a.keys + (i64)h.state * TOKENS * (DIM + 1), h.taken);\n"
FIRST = "copy_wait<STAGES - 2>();\n"
SEEN, LR = "l.column_of(k) <= l.row + 8 * r", "p.lr[h.first_rate + h.token(t, o.token)]"
GX = "gx - s.mean_gx - x * s.mean_gxx"
OWN = "l.warp == 0 ? 1.f : 0.f"
UPDATE = "mma(W.w2[s][m], g, right(x2[m]))"
ROUND = "for (auto& v : W.w2[s][m].v) for (float& e : v) e = bf16_lo(pack_bf16(e, 0));"
FAULTS = [
    Mutant("the first bias has no score", {"fill(S, 1.f)": "fill(S, 0.f)"}),
    Mutant("the second bias has no score", {OWN: "0.f"}),
    Mutant("the second bias has eight scores", {OWN: "1.f"}),
    Mutant("a token does not see itself", {SEEN: "l.column_of(k) < l.row + 8 * r"}),
    Mutant("one score of the future", {SEEN: "l.column_of(k) <= l.row + 8 * r + (l.row == 3)"}),
    Mutant("rate of another row", {"-p.tok[Lane().row + 8]": "-p.tok[Lane().row]"}),
    Mutant("rate of the next token", {LR: "p.lr[h.first_rate + (h.token(t, o.token) + 1) % h.tokens]"}),
    Mutant("b1 does not learn", {"add_tokens(W.b1[m], u)": "void()"}),
    Mutant("b2 does not learn", {"rate * sum[i]": "0.f"}),
    Mutant("b2 counts twice", {"l.warp == s": "l.warp % STEPS == s"}),
    Mutant("W1 does not learn", {"mma_tile(W.w1[m][s], u, in.k, 0, 16 * s, l)": "void()"}),
    Mutant("W2 does not learn", {UPDATE: "void()"}),
    Mutant("the target is v", {"beta[i] - v[i] + k[i]": "beta[i] - v[i]"}),
    Mutant("update at the rate of token 14", {"a.p.tok[TOKENS - 1]": "a.p.tok[TOKENS - 2]"}),
    Mutant("residual of the keys", {"stage(shared, t - 1).q": "stage(shared, t - 1).k"}),
    Mutant("no mean in the inner gradient", {GX: "gx - x * s.mean_gxx"}),
    Mutant("no projection in the inner gradient", {GX: "gx - s.mean_gx"}),
    Mutant("epsilon 1e-5", {"fmaxf(sum[1] * PER_DIM - mu * mu, 0.f) + EPSILON": "sum[1] * PER_DIM - mu * mu + 1e-5f"}),
    Mutant("epsilon of the output 1e-5", {
        "fmaxf(sum[1] - sum[0] * sum[0], 0.f) + EPSILON": "fmaxf(sum[1] - sum[0] * sum[0], 0.f) + 1e-5f"}),
    Mutant("the slope of gelu is its gate", {"s + t * x * w": "s"}),
    Mutant("no gelu for the queries", {"gelu(now.z1bar[m].at(r, k)).value": "now.z1bar[m].at(r, k)"}),
    Mutant("no P1 Ghat1", {"mma(now.z1bar[m], pack(ghat1[m]), right(now.minus_p1))": "void()"}),
    Mutant("P1 for P2", {"minus_P(S2, rates, l)": "now.minus_p1"}),
    Mutant("an open mini-batch updates", {"h.open(t) ? 0.f : -tok_last": "-tok_last"}),
    Mutant("an open mini-batch forgets its keys", {"taken * DIM / 2": "0"}),
    Mutant("an open mini-batch forgets its gradients", {"t == 0 && o.token < h.taken": "false"}),
    Mutant("bf16 state", {UPDATE: f"[&] {{ {UPDATE}; {ROUND} }}()"}),
]  # fmt: skip
RACES = [
    Mutant("no barrier 1", {"sync_cta(); // 1: sums of Z2": ""}),
    Mutant("no barrier 2", {"sync_cta(); // 2: everyone's": ""}),
    Mutant("no barrier before the first mini-batch", {FIRST + "sync_cta();": FIRST}),
    Mutant("no wait for the copies", {WAIT: ""}),
    Mutant("a wait for one tile too few", {WAIT: "copy_wait<STAGES - 2>();"}),
    Mutant("one buffer of sums", {"memory + Z2BAR": "memory + Z2"}),
    Mutant("the next tile fetched before barrier 2", {WAIT: f"{FETCH} copy_wait<STAGES - 2>();", FETCH: ""}),
    Mutant("keys restored without a barrier", {RESTORE + "sync_cta();": RESTORE}),
]


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> Mutants:
    return Mutants("ttt_mlp_fwd.cu", FAULTS + RACES, tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize("name", [m.name for m in FAULTS])
def test_every_fault_is_found(name: str, mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    with mutants.active(name, monkeypatch):
        assert any(e > 1 for e in excesses(name))


def excesses(name: str) -> Iterator[float]:
    """Errors over bounds where faults show: a few tokens, a call that continues another, tiny weights, many tokens.

    The epsilon of the output shows only as long as nothing is learned.
    """
    if name == "bf16 state":
        yield excess(x := case(512, scale=0.2), forward(x))
        return
    yield excess(x := case(37), forward(x))
    yield excess(x, continued(x))
    yield excess(x := case(24, scale=1e-2), forward(x))
    yield excess(x := case(8, scale=1e-2, rate=0.0), forward(x))


def continued(x: Case) -> Result:
    """Two calls, the second inside a mini-batch."""
    first, second = forward(x.tokens(0, 21)), x.tokens(21)
    second = second._replace(start1=first.end1, start2=first.end2)
    rest = forward(second, first.keys, first.ghat2, segments(second, 5), 8)
    return rest._replace(out=torch.cat([first.out, rest.out], 1))


def results() -> list[Result]:
    return [forward(x := case(101)), continued(x)]


@pytest.fixture(scope="module")
def calm() -> list[Result]:
    return results()


@pytest.mark.parametrize(("order", "eager"), SCHEDULES)
def test_every_schedule_gives_the_same_bits(order: int, eager: int, calm: list[Result]) -> None:
    with emulation.schedule(order, eager):
        assert all(map(same, results(), calm))


@pytest.mark.parametrize("name", [m.name for m in RACES])
def test_every_race_is_found(name: str, mutants: Mutants, calm: list[Result], monkeypatch: pytest.MonkeyPatch) -> None:
    with mutants.active(name, monkeypatch):
        assert any(differs(order, eager, calm) for order, eager in SCHEDULES)


def differs(order: int, eager: int, calm: list[Result]) -> bool:
    with emulation.schedule(order, eager):
        return not all(map(same, results(), calm))
