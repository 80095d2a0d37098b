"""Faults that the comparison with the primal form has to find, and races that the schedules have to find."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from tests.ttt_impl.kernels.cases import Case, Result, case, excess, forward, same
from tests.ttt_impl.kernels.mutation import Mutant, Mutants
from tests.ttt_impl.kernels.test_linear_forward_emulation import segments
from ttt_impl.kernels import emulation, self_check

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
SCHEDULES = list(itertools.product((0, 1, 2), (0, 1)))
WAIT, FETCH = "copy_wait<STAGES - 3>();", "fetch_stage(p, h, shared, t + STAGES - 1);"
BARRIER = "sync_cta(); // everyone's part"
STATS = "stats[l.id] = F4{s.r, s.shift, s.mean_gx, s.mean_gxx};\n"
RESTORE = "restore_keys<THREADS>(stage(shared, 0).k, a.keys + (i64)h.state * TOKENS * (DIM + 1), h.taken);\n"
SEEN, LR = "l.column_of(k) <= l.row + 8 * r", "p.lr[h.first_rate + h.token(t, l.column_of(k))]"
UPDATE = "rank16_update(W[m], u, in.k, l)"
ROUND = "for (Acc& w : W[m].w) for (auto& v : w.v) for (float& e : v) e = bf16_lo(pack_bf16(e, 0));"
FAULTS = [
    Mutant("the bias has no score", {"fill(S, 1.f)": "fill(S, 0.f)"}),
    Mutant("a token does not see itself", {SEEN: "l.column_of(k) < l.row + 8 * r"}),
    Mutant("one score of the future", {SEEN: "l.column_of(k) <= l.row + 8 * r + (l.row == 3)"}),
    Mutant("rate of another row", {"-p.tok[l.row + 8]": "-p.tok[l.row]"}),
    Mutant("rate of the next token", {LR: "p.lr[h.first_rate + (h.token(t, l.column_of(k)) + 1) % h.tokens]"}),
    Mutant("the bias does not learn", {"0x3f803f80u": "0u"}),
    Mutant("the target is v", {"beta[r] - v.at(r, k) + k_own.at(r, k)": "beta[r] - v.at(r, k)"}),
    Mutant("update at the rate of token 14", {"p.tok[TOKENS - 1]": "p.tok[TOKENS - 2]"}),
    Mutant("residual of the keys", {"q_before[m] = q_own[m]": "q_before[m] = k_own[m]"}),
    Mutant("no mean in the inner gradient", {"gx - s.z - x * s.w": "gx - x * s.w"}),
    Mutant("no projection in the inner gradient", {"gx - s.z - x * s.w": "gx - s.z"}),
    Mutant("epsilon 1e-5", {"fmaxf(sum[1] * PER_DIM - mu * mu, 0.f) + EPSILON": "sum[1] * PER_DIM - mu * mu + 1e-5f"}),
    Mutant("an open mini-batch updates", {"h.open(t) ? 0.f : -tok_last": "-tok_last"}),
    Mutant("an open mini-batch forgets its keys", {"taken * DIM / 2": "0"}),
    Mutant("an open mini-batch forgets its gradients", {"t == 0 && h.taken": "false"}),
    Mutant("bf16 state", {UPDATE: f"[&] {{ {UPDATE}; {ROUND} }}()"}),
]  # fmt: skip
UNSEEN = ("bf16 state",)
"""A fault that takes a thousand tokens to show."""
RACES = [
    Mutant("no barrier", {BARRIER: ""}),
    Mutant("statistics read before they are written", {STATS + "sync_warp();": STATS}),
    Mutant("no wait for the copies", {WAIT: ""}),
    Mutant("a wait for one tile too few", {WAIT: "copy_wait<STAGES - 2>();"}),
    Mutant("one buffer of sums", {"(t & 1) * 8 * TOKENS * WARPS": "0"}),
    Mutant("the next tile fetched before the barrier", {WAIT: f"{FETCH} copy_wait<STAGES - 2>();", FETCH: ""}),
    Mutant("keys restored without a barrier", {RESTORE + "sync_cta();": RESTORE}),
]


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> Mutants:
    return Mutants("ttt_linear_fwd.cu", FAULTS + RACES, tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize("name", [m.name for m in FAULTS])
def test_every_fault_is_found(name: str, mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    with mutants.active(name, monkeypatch):
        assert max(excesses(name)) > 1


@pytest.mark.parametrize("name", [m.name for m in FAULTS if m.name not in UNSEEN])
def test_the_self_check_refuses_the_kernel(name: str, mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    with mutants.active(name, monkeypatch):
        assert "is off by" in str(self_check.complaint.__wrapped__("ttt_linear_fwd", 64, torch.device("cpu")))


def excesses(name: str) -> Iterator[float]:
    """Errors over bounds where faults show: many tokens, tiny weights, a call that continues another."""
    if name == "bf16 state":
        yield excess(x := case(1024), forward(x))
        return
    yield excess(x := case(53), forward(x))
    yield excess(x, continued(x))
    yield excess(x := case(40, scale=1e-4), forward(x))


def continued(x: Case) -> Result:
    """Two calls, the second inside a mini-batch."""
    first, second = forward(x.tokens(0, 21)), x.tokens(21)
    rest = forward(second._replace(start=first.end), first.keys, first.ghat, segments(second, 5), 8)
    return rest._replace(out=torch.cat([first.out, rest.out], 1))


def results() -> list[Result]:
    return [forward(x := case(117, heads=2)), continued(x)]


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
