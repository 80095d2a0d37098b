"""Three ways to ask for perplexity against context: what is fed, what is scored, and what it costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from baselines.interface import Encoded, SequenceModel, bytes_as_tokens
from harness.data.tokens import TokenDocument
from harness.measure.fixed_target import BLOCK, block_starts, contexts_up_to, fixed_target
from harness.measure.nll_file import Score
from harness.measure.position import position_curve
from harness.measure.window import windowed, windows


def counting_document(name: str, length: int) -> TokenDocument:
    """Token i is i, so that what was fed can be read off."""
    return TokenDocument(name, np.arange(length, dtype=np.uint16))  # type: ignore[arg-type]


def first_token(rows: np.ndarray, targets: int) -> np.ndarray:
    """A score that tells which token stood first in the row of each target."""
    return np.broadcast_to(rows[:, :1], (len(rows), targets)).astype(float)


def silent(done: int, total: int) -> None:
    assert done <= total


def test_contexts_double_as_far_as_five_documents_reach() -> None:
    assert contexts_up_to(2048, [5000] * 9) == [16, 32, 64, 128, 256, 512, 1024, 2048]
    assert contexts_up_to(2048, [9000] * 4 + [200] * 5) == [16, 32, 64, 128]
    assert contexts_up_to(100, [9000] * 3) == [16, 32, 64]
    assert contexts_up_to(2048, [31] * 9) == []


def test_blocks_lie_evenly_behind_the_longest_context() -> None:
    assert block_starts(1000, 128, 3) == [128, 556, 984]
    assert block_starts(160, 128, 4) == [128, 144]
    assert block_starts(143, 128, 4) == []


def test_fixed_targets_see_the_same_tokens_with_the_stated_context(tmp_path: Path) -> None:
    documents = [counting_document(f"d{i}", 90 + i) for i in range(5)] + [counting_document("short", 40)]
    found = fixed_target(first_token, documents, 64, 32, 32, tmp_path / "f.parquet", tmp_path, silent)
    assert (found.contexts, found.documents, found.targets) == ([16, 32, 64], 5, 5 * BLOCK)
    table = pd.read_parquet(tmp_path / found.nll_file)
    assert set(table["document"]) == {f"d{i}" for i in range(5)}
    for _, row in table.iterrows():
        assert list(row["nll"]) == [row["start"] - row["context"]] * BLOCK
    starts = table.groupby("context")["start"].apply(list)
    assert starts[16] == starts[32] == starts[64]


def test_too_short_documents_are_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than 5 test documents have 16 targets behind 16 tokens"):
        fixed_target(first_token, [counting_document("a", 20)], 64, 32, None, tmp_path / "f", tmp_path, silent)


@pytest.mark.parametrize(("length", "window", "stride"), [(50, 8, 8), (50, 8, 3), (9, 8, 8), (5, 8, 2), (33, 16, 16)])
def test_windows_score_every_token_once_and_hold_no_more_than_they_may(length: int, window: int, stride: int) -> None:
    seen: list[int] = []
    for begin, end, targets in windows(length, window, stride):
        first = end - targets + 1
        assert end - begin <= window
        assert not seen or first - begin > window - stride
        seen += range(first, end + 1)
    assert seen == list(range(1, length))


def test_a_windows_targets_get_what_the_window_holds(tmp_path: Path) -> None:
    found = windowed(first_token, [counting_document("a", 30)], 30, 8, 4, None, tmp_path / "w", tmp_path, silent)
    (nll,) = pd.read_parquet(tmp_path / found.nll_file)["nll"]
    wanted = [next(b for b, e, n in windows(30, 8, 4) if e - n < token <= e) for token in range(1, 30)]
    assert list(nll) == wanted
    assert (found.window, found.stride, found.tokens) == (8, 4, 29)


def scorer(model: SequenceModel) -> Score:
    return lambda rows, targets: model.score(torch.from_numpy(rows.astype(np.int64)), targets=targets).numpy()


@pytest.fixture
def fed(gru: SequenceModel) -> list[int]:
    """Tokens of each forward pass."""
    sizes: list[int] = []
    gru.model.register_forward_hook(lambda _m, args, kwargs, _o: sizes.append(args[0].numel()), with_kwargs=True)
    return sizes


def letters(count: int, length: int) -> list[TokenDocument]:
    rng = np.random.default_rng(0)
    return [TokenDocument(f"d{i}", rng.integers(97, 123, length, dtype=np.uint8)) for i in range(count)]


def in_bytes(document: TokenDocument, tokens: int) -> Encoded:
    return bytes_as_tokens(document.text(tokens))


def test_one_pass_gives_the_whole_position_curve(gru: SequenceModel, fed: list[int], tmp_path: Path) -> None:
    documents = letters(3, 500)
    position_curve(scorer(gru), in_bytes, documents, 500, None, tmp_path / "p", tmp_path, silent)
    assert sum(fed) == 3 * 499


def test_fixed_targets_cost_their_context_once_a_block(gru: SequenceModel, fed: list[int], tmp_path: Path) -> None:
    fixed_target(scorer(gru), letters(5, 400), 128, 32, None, tmp_path / "f", tmp_path, silent)
    assert sum(fed) == 5 * 2 * sum(context + BLOCK - 1 for context in (16, 32, 64, 128))


def test_the_three_conventions_agree_where_they_ask_the_same(gru: SequenceModel, tmp_path: Path) -> None:
    """A window as long as the document is the position curve, whose targets a context from the start on also gives."""
    documents = letters(5, 48)
    position_curve(scorer(gru), in_bytes, documents, 48, None, tmp_path / "p", tmp_path, silent)
    windowed(scorer(gru), documents, 48, 48, 48, None, tmp_path / "w", tmp_path, silent)
    fixed_target(scorer(gru), documents, 32, 16, None, tmp_path / "f", tmp_path, silent)
    position, window, fixed = (pd.read_parquet(tmp_path / name) for name in "pwf")
    fixed = fixed[fixed["context"] == 32]
    for i in range(5):
        np.testing.assert_allclose(window["nll"][i], position["nll"][i], atol=1e-5)
        np.testing.assert_allclose(fixed["nll"].iloc[i], position["nll"][i][31:], atol=1e-5)


def test_a_nan_names_its_document_and_position(tmp_path: Path) -> None:
    def score(rows: np.ndarray, targets: int) -> np.ndarray:
        return np.where(rows[:, -targets:] == 41, np.nan, 1.0)

    documents = [counting_document(f"d{i}", 90) for i in range(5)]
    with pytest.raises(ArithmeticError, match="NLL of d0 is not finite at position 40"):
        windowed(score, documents, 90, 8, 8, None, tmp_path / "w", tmp_path, silent)
    with pytest.raises(ArithmeticError, match="NLL of d0 is not finite at position 40"):
        fixed_target(score, documents, 32, 64, None, tmp_path / "f", tmp_path, silent)
