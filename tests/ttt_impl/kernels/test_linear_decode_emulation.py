"""TTT-Linear's decoding kernel, run by the emulator, against the primal form and against the prefill kernel."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.ttt_impl.kernels.cases import Case, Result, case, error, excess, forward
from tests.ttt_impl.kernels.mutation import Mutant, Mutants
from ttt_impl.kernels import emulation, self_check
from ttt_impl.kernels.operators import linear_decode

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating kernels needs g++")
SCHEDULES = list(itertools.product((0, 1, 2), (0, 1)))
PREFILL = 2.5e-3
"""Decoding keeps Ghat in float32 where the prefill rounds it to bf16: this far apart are their outputs and states."""
FAULTS = [
    Mutant("rate of the row before", {"p.tok[row]": "p.tok[row ? row - 1 : 0]"}),
    Mutant("no score of the bias", {"sum + 1.f": "sum"}),
    Mutant("a token does not see itself", {"j <= row": "j < row"}),
    Mutant("the bias is not folded", {"rate * sh.ghat[j][l.id + 32 * e]": "0.f"}),
    Mutant("the weights are not written", {"folded = true": "folded = false"}),
    Mutant("rows are not emptied", {"sh.keys[i / DIM][i % DIM] = sh.ghat[i / DIM][i % DIM] = 0.f": "0.f"}),
    Mutant("the counter stands still", {"a.count[h.state] = row": "a.count[h.state] = first"}),
]  # fmt: skip
UNSEEN = ("the counter stands still",)
"""`fused_cuda.run` counts anew in every call."""
RACES = [
    Mutant(f"no barrier: {name}", {f"sync_cta(); // {name}": ""})
    for name in ("the token is here", "partial products", "the last row of Ghat", "rows are read", "the rows are final")
] + [Mutant("one buffer for the token", {"sh.token[u & 1]": "sh.token[0]"})]


class State:
    """What decoding changes in place."""

    def __init__(self, weights: Tensor, keys: Tensor, ghat: Tensor, count: int) -> None:
        self.tensors = [weights.clone(), keys.clone(), ghat.clone()]
        self.tensors.append(torch.full((len(weights),), count, dtype=torch.int32))

    def read(self, x: Case, lengths: Tensor | None = None) -> Tensor:
        out: Tensor = linear_decode(*x[:7], *self.tensors, lengths)
        return out

    def result(self, out: Tensor) -> Result:
        return Result(out, *self.tensors[:3], out, out)


def fresh(x: Case) -> State:
    width = x.q.shape[3]
    return State(x.start, torch.zeros(len(x.start), 16, width + 1), torch.zeros(len(x.start), 16, width), 0)


def decoded(x: Case, state: State, tokens: int) -> Result:
    """Some tokens a call."""
    length = x.q.shape[1]
    outs = [state.read(x.tokens(t, min(t + tokens, length))) for t in range(0, length, tokens)]
    return state.result(torch.cat(outs, 1))


@pytest.mark.parametrize(("length", "tokens"), [(40, 1), (70, 5), (48, 16), (100, 33)])
def test_matches_the_primal_form(length: int, tokens: int) -> None:
    x = case(length, batch=2, heads=2, seed=length)
    result = decoded(x, fresh(x), tokens)
    assert excess(x, result) < 1
    assert clean(x, result)


@pytest.mark.parametrize("width", [96, 128])
def test_wider_heads_match_the_primal_form(width: int) -> None:
    x = case(20, heads=2, width=width)
    assert excess(x, decoded(x, fresh(x), 7)) < 1


def test_tiny_weights_feel_epsilon() -> None:
    x = case(20, scale=1e-4)
    assert excess(x, decoded(x, fresh(x), 5)) < 1


@pytest.mark.parametrize(("prefill", "tokens"), [(1, 3), (16, 1), (53, 7), (64, 16)])
def test_prefill_and_decoding_equal_one_prefill(prefill: int, tokens: int) -> None:
    x = case(prefill + 30, batch=2, heads=2, seed=prefill)
    first, whole = forward(x.tokens(0, prefill)), forward(x)
    rest = decoded(x.tokens(prefill), State(*first[1:4], prefill % 16), tokens)
    both = rest._replace(out=torch.cat([first.out, rest.out], 1))
    assert excess(x, both) < 1
    assert error(both.out, whole.out.double()) < PREFILL
    assert error(both.end, whole.end.double()) < PREFILL
    assert torch.equal(both.keys, whole.keys)


def test_decoding_hands_over_to_prefill() -> None:
    """The state has one form, whoever wrote it."""
    x = case(61, batch=1, heads=2)
    state = fresh(x)
    first = decoded(x.tokens(0, 21), state, 4)
    second = x.tokens(21)._replace(start=first.end)
    rest = forward(second, first.keys, first.ghat, torch.tensor([[0, 0, 40, 5, 0]], dtype=torch.int32), 3)
    assert excess(x, rest._replace(out=torch.cat([first.out, rest.out], 1))) < 1


def test_sequences_stand_at_different_places() -> None:
    """Ragged calls: some sequences take all tokens, some none."""
    x = case(40, batch=3, heads=2, seed=5)
    state, places, outs = fresh(x), [0, 0, 0], [[], [], []]  # type: ignore[var-annotated]
    for lengths in ([3, 0, 5], [5, 5, 0], [0, 1, 5], [5, 5, 5], [5, 4, 2], [3, 5, 5], [5, 5, 5]):
        parts = [x.rows([i]).tokens(p, p + 5) for i, p in enumerate(places)]
        call = Case(*(torch.cat([getattr(part, name) for part in parts]) for name in Case._fields[:4]), *x[4:])
        out = state.read(call, torch.tensor(lengths, dtype=torch.int32))
        for i, n in enumerate(lengths):
            assert not out[i, n:].any()
            outs[i].append(out[i, :n])
            places[i] += n
    assert state.tensors[3].tolist() == [p % 16 for p in places for _ in range(2)]
    for i, place in enumerate(places):
        own = Result(torch.cat(outs[i])[None], *(t[2 * i : 2 * i + 2] for t in state.tensors[:3]), out, out)
        assert excess(x.rows([i]).tokens(0, place), own) < 1


def clean(x: Case, result: Result) -> bool:
    """Rows not taken are zero, as all readers of the state expect."""
    taken = x.q.shape[1] % 16
    return not result.keys[:, taken:].any() and not result.ghat[:, taken:].any()


def results() -> list[Result]:
    x = case(40, heads=2)
    return [decoded(x, fresh(x), 9), decoded(x, fresh(x), 40)]


@pytest.mark.parametrize(("order", "eager"), SCHEDULES)
def test_every_schedule_gives_the_same_bits(order: int, eager: int) -> None:
    calm = results()
    with emulation.schedule(order, eager):
        assert all(torch.equal(a, b) for x, y in zip(results(), calm, strict=True) for a, b in zip(x, y, strict=True))


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> Mutants:
    return Mutants("ttt_linear_decode.cu", FAULTS + RACES, tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize("name", [m.name for m in FAULTS])
def test_every_fault_is_found(name: str, mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    x = case(40, heads=2)
    with mutants.active(name, monkeypatch):
        result = decoded(x, fresh(x), 9)
        assert excess(x, result) > 1 or not clean(x, result)


@pytest.mark.parametrize("name", [m.name for m in FAULTS if m.name not in UNSEEN])
def test_the_self_check_refuses_the_kernel(name: str, mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    with mutants.active(name, monkeypatch):
        assert "is off by" in str(self_check.complaint.__wrapped__("ttt_linear_decode", 64, torch.device("cpu")))


@pytest.mark.parametrize("name", [m.name for m in RACES])
def test_every_race_is_found(name: str, mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = results()
    with mutants.active(name, monkeypatch):
        assert any(differs(order, calm) for order in (0, 1, 2))


def differs(order: int, calm: list[Result]) -> bool:
    with emulation.schedule(order):
        return any(
            not torch.equal(a, b) for x, y in zip(results(), calm, strict=True) for a, b in zip(x, y, strict=True)
        )
