"""TTT-MLP's decoding kernel, run by the emulator, against the primal form and against the prefill kernel."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.kernels.cases_mlp import Case, Result, case, errors, excess, forward
from tests.ttt_impl.kernels.mutation import Mutant, Mutants
from ttt_impl.kernels import emulation
from ttt_impl.kernels.bounds import error
from ttt_impl.kernels.operators_mlp import mlp_decode
from ttt_impl.state import with_hidden

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
SCHEDULES = list(itertools.product((0, 1, 2), (0, 1)))
PREFILL = 4e-3
"""Decoding keeps in float32 what the prefill rounds to bf16: this far apart are their outputs and states."""
EXACT = 0.1
"""Multiple of the prefill's bound that float32 weights and rows are held to; tanh is good to 2^-11."""
SECOND = "rate * s * sh.ghat2[j][l.id + 32 * e]"
OWN_SCORE = "j <= row ? x2bar * sh.x2[j][tid()] : 0.f"
FAULTS = [
    Mutant("rate of the row before", {"p.tok[row] * sh.score[j]": "p.tok[row ? row - 1 : 0] * sh.score[j]"}),
    Mutant("rate of the row before in the second layer", {
        "read_rows(z2bar, sh, p.tok[row], row, l)": "read_rows(z2bar, sh, p.tok[row ? row - 1 : 0], row, l)"}),
    Mutant("no score of the first bias", {"sum + 1.f": "sum"}),
    Mutant("no score of the second bias", {SECOND: SECOND.replace("s *", "(s - 1.f) *")}),
    Mutant("a hidden layer does not see itself", {OWN_SCORE: "j < row ? x2bar * sh.x2[j][tid()] : 0.f"}),
    Mutant("b1 is not folded", {"b1 -= g[j]": "b1 -= 0.f"}),
    Mutant("b2 is not folded", {"rate * sh.ghat2[j][l.id + 32 * e]": "0.f"}),
    Mutant("W1 is not folded", {"sum += g[j] * sh.keys[j][f]": "sum += 0.f"}),
    Mutant("no slope of gelu", {"hidden.slope": "1.f"}),
    Mutant("the weights are not written", {"folded = true": "folded = false"}),
    Mutant("rows are not emptied", {"sh.ghat1[j][unit] = sh.x2[j][unit] = 0.f": "0.f"}),
    Mutant("the counter stands still", {"a.count[h.state] = row": "a.count[h.state] = first"}),
]  # fmt: skip
PLACES = ("the token is here", "partial sums of z2;", "Ghat2", "partial sums of z2bar", "rows are read")
RACES = [
    *(Mutant(f"no barrier: {name}", {f"sync_cta(); // {name}": ""}) for name in PLACES),
    *(Mutant(f"no barrier of a warp: {x}", {f"sync_warp(); // the warp's {x}\n": "\n"}) for x in ("x2", "x2bar")),
    Mutant("one buffer for the token", {"sh.token[u & 1]": "sh.token[0]"}),
]


class State:
    """What decoding changes in place: W1, W2, keys, Ghat1, Ghat2, X2, count."""

    def __init__(self, *tensors: Tensor, count: int) -> None:
        w1, w2, *rows = (t.clone() for t in tensors)
        self.tensors = [w1, w2, *with_hidden((w1, w2), tuple(rows)).rows]
        self.tensors.append(torch.full((len(w1),), count, dtype=torch.int32))

    def read(self, x: Case, lengths: Tensor | None = None) -> Tensor:
        out: Tensor = mlp_decode(*x[:7], *self.tensors, lengths)
        return out

    def result(self, out: Tensor) -> Result:
        return Result(out, *self.tensors[:5], *(self.tensors[5],) * 3)


def fresh(x: Case) -> State:
    count = len(x.start1)
    return State(x.start1, x.start2, *(torch.zeros(count, 16, n) for n in (65, 256, 64)), count=0)


def decoded(x: Case, state: State, tokens: int) -> Result:
    """Some tokens a call."""
    length = x.q.shape[1]
    outs = [state.read(x.tokens(t, min(t + tokens, length))) for t in range(0, length, tokens)]
    return state.result(torch.cat(outs, 1))


def exact(x: Case, result: Result) -> bool:
    """Weights and what they learned far closer than the prefill's; the output rounded to bf16."""
    found = errors(x, result)
    return max(found.values()) < 1 and max(found[name] for name in found if "W" in name) < EXACT


@pytest.mark.parametrize(("length", "tokens", "batch"), [(20, 1, 2), (37, 5, 1), (48, 16, 1), (70, 33, 1)])
def test_matches_the_primal_form(length: int, tokens: int, batch: int) -> None:
    x = case(length, batch=batch, heads=batch, seed=length)
    result = decoded(x, fresh(x), tokens)
    assert exact(x, result)
    assert clean(x, result)


@pytest.mark.parametrize("change", [{"scale": 1e-2}, {"rate": 4.0}])
def test_corners_match_the_primal_form(change: dict[str, float]) -> None:
    """Tiny weights feel LayerNorm's epsilon."""
    x = case(20, **change)
    assert exact(x, decoded(x, fresh(x), 7))


@pytest.mark.parametrize(("prefill", "tokens"), [(1, 3), (16, 5), (53, 7)])
def test_prefill_and_decoding_equal_one_prefill(prefill: int, tokens: int) -> None:
    x = case(prefill + 20, heads=2, seed=prefill)
    first, whole = forward(x.tokens(0, prefill)), forward(x)
    rest = decoded(x.tokens(prefill), State(*first[1:6], count=prefill % 16), tokens)
    both = rest._replace(out=torch.cat([first.out, rest.out], 1))
    assert excess(x, both) < 1
    for name in ("out", "end1", "end2"):
        assert error(getattr(both, name), getattr(whole, name).double()) < PREFILL
    assert torch.equal(both.keys, whole.keys)


def test_decoding_hands_over_to_prefill() -> None:
    """The state has one form, whoever wrote it."""
    x = case(53)
    first = decoded(x.tokens(0, 21), fresh(x), 4)
    second = x.tokens(21)._replace(start1=first.end1, start2=first.end2)
    rest = forward(second, first.keys, first.ghat2, torch.tensor([[0, 0, 32, 5, 0]], dtype=torch.int32), 3)
    assert excess(x, rest._replace(out=torch.cat([first.out, rest.out], 1))) < 1


def test_sequences_stand_at_different_places() -> None:
    """Ragged calls: some sequences take all tokens, some none."""
    x = case(30, batch=3, seed=5)
    state, places, outs = fresh(x), [0, 0, 0], [[], [], []]  # type: ignore[var-annotated]
    for lengths in ([3, 0, 5], [5, 5, 0], [0, 1, 5], [5, 5, 5], [5, 4, 2]):
        parts = [x.rows([i]).tokens(p, p + 5) for i, p in enumerate(places)]
        call = Case(*(torch.cat([getattr(part, name) for part in parts]) for name in Case._fields[:4]), *x[4:])
        out = state.read(call, torch.tensor(lengths, dtype=torch.int32))
        for i, n in enumerate(lengths):
            assert not out[i, n:].any()
            outs[i].append(out[i, :n])
            places[i] += n
    assert state.tensors[6].tolist() == [p % 16 for p in places]
    for i, place in enumerate(places):
        own = Result(torch.cat(outs[i])[None], *(t[i : i + 1] for t in state.tensors[:5]), out, out, out)
        assert exact(x.rows([i]).tokens(0, place), own)


def clean(x: Case, result: Result) -> bool:
    """Rows not taken are zero, as all readers of the state expect; the keys of the biases say which are taken."""
    taken, hidden = x.q.shape[1] % 16, result.updates
    ones = [t[:, :, -1] for t in (result.keys, hidden)]
    flags = (torch.arange(16) < taken).float()
    return all(torch.equal(t, flags.expand_as(t)) for t in ones) and not any(
        t[:, taken:].any() for t in (*result[3:6], hidden)
    )


def results() -> list[Result]:
    x = case(35)
    return [decoded(x, fresh(x), 9), decoded(x, fresh(x), 35)]


@pytest.fixture(scope="module")
def calm() -> list[Result]:
    return results()


@pytest.mark.parametrize(("order", "eager"), SCHEDULES)
def test_every_schedule_gives_the_same_bits(order: int, eager: int, calm: list[Result]) -> None:
    assert not differs(order, eager, calm)


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> Mutants:
    return Mutants("ttt_mlp_decode.cu", FAULTS + RACES, tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize("name", [m.name for m in FAULTS])
def test_every_fault_is_found(name: str, mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    x = case(35)
    with mutants.active(name, monkeypatch):
        result = decoded(x, fresh(x), 9)
        assert not exact(x, result) or not clean(x, result)


@pytest.mark.parametrize("name", [m.name for m in RACES])
def test_every_race_is_found(name: str, mutants: Mutants, calm: list[Result], monkeypatch: pytest.MonkeyPatch) -> None:
    with mutants.active(name, monkeypatch):
        assert any(differs(order, 0, calm) for order in (0, 1, 2))


def differs(order: int, eager: int, calm: list[Result]) -> bool:
    with emulation.schedule(order, eager):
        return any(
            not torch.equal(a, b) for x, y in zip(results(), calm, strict=True) for a, b in zip(x, y, strict=True)
        )
