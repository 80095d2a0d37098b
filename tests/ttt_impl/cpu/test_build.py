"""C++ to a library: compiled once, found again, absent with one reason; and the arithmetic that the operators share."""

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ttt_impl.cpu import build

SOURCE = """
#include "vector.h"
extern "C" void functions(const float *x, float *e, float *s, int count, int threads) {
    parallel(threads, count / LANES, [&](int i) {
        store(e + i * LANES, exp(load(x + i * LANES)));
        store(s + i * LANES, sigmoid(load(x + i * LANES)));
    });
}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "functions.cpp"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def fresh(forgetful: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(build.OFF, raising=False)
    return tmp_path / "ttt-bench"


def test_a_library_is_compiled_once_and_found_again(source: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.cached(source)
    assert [x.name for x in fresh.iterdir()] == [first.name]
    monkeypatch.setattr(build, "compile_to", lambda *_: pytest.fail("compiled again"))
    assert build.cached(source) == first


def test_another_source_or_header_is_another_library(source: Path, fresh: Path, tmp_path: Path) -> None:
    copy = tmp_path / "functions.cpp"
    copy.write_text(SOURCE)
    names = [build.cached(source)]
    (tmp_path / "more.h").write_text("// a header beside the source")
    names.append(build.cached(copy))
    copy.write_text(SOURCE + "// changed")
    names.append(build.cached(copy))
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("variables", "text", "reason"),
    [
        ({"PATH": "", "CXX": ""}, SOURCE, "no C\\+\\+ compiler on PATH"),
        ({build.OFF: "1"}, SOURCE, f"{build.OFF} is set"),
        ({}, "int x = nonsense;", "error: .nonsense. was not declared|error: use of undeclared"),
    ],
)
def test_one_warning_says_why_there_is_none(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], text: str, reason: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    sources = [tmp_path / "one.cpp", tmp_path / "two.cpp"]
    for path in sources:
        path.write_text(text)
    with pytest.warns(RuntimeWarning, match=reason) as warned:
        libraries = [build.library(path) for path in (*sources, *sources)]
    assert libraries == [None] * 4
    assert len({str(w.message) for w in warned}) == len(warned)


def test_exp_and_sigmoid(source: Path) -> None:
    """Two units in the last place over all floats' range; what is not a number or infinite stays so."""
    library = build.library(source)
    assert library is not None
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 88.8, -104.0, 1e30, -1e30])
    x = torch.cat([torch.linspace(-87.2, 88.7, 4088), special]).repeat(16)
    e, s = torch.empty_like(x), torch.empty_like(x)

    def pointer(t: Tensor) -> ctypes.c_void_p:
        return ctypes.c_void_p(t.data_ptr())

    library.functions(pointer(x), pointer(e), pointer(s), len(x), 2)
    torch.testing.assert_close(
        e.double(), x.double().exp().float().double(), rtol=3 * 2.0**-24, atol=1e-37, equal_nan=True
    )
    torch.testing.assert_close(s.double(), x.double().sigmoid(), rtol=4 * 2.0**-24, atol=1e-37, equal_nan=True)
