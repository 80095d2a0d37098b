"""The rendered folder: every file, the same bytes again, numbers as computed by hand, and a page that stands alone."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from harness.records import Decode, FirstToken, Prefill, RecordStore
from harness.report import terminal_summary
from tests.report.sample import FLOORS, MODELS, nll_of

FIGURES = (
    "perplexity", "fixed-target", "prefill", "first-token", "decode", "decode-batch", "training", "quality-cost",
    "adapting", "recall-slices", "recall-map",
)  # fmt: skip
TABLES = (
    "summary", "cost", "context-gain", "differences", "significance", "conventions", "dynamic", "recall", "lm-eval",
    "decode-batches", "seeds", "gate", "conditions", "job", "provenance", "curves", "timings", "recall-cells",
)  # fmt: skip
VOID = {"meta", "link", "br", "hr", "img", "input"}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _csv(run_folder: Path, name: str) -> dict[str, dict[str, str]]:
    with (run_folder / "report" / "tables" / f"{name}.csv").open() as file:
        return {row[next(iter(row))]: row for row in csv.DictReader(file)}


def test_every_file_is_there(run_folder: Path) -> None:
    wanted = {"report.html", "summary.md"}
    wanted |= {f"figures/{name}.{kind}" for name in FIGURES for kind in ("svg", "png", "pdf")}
    wanted |= {f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "tex", "md")}
    assert set(_bytes(run_folder / "report")) == wanted


def test_rendering_again_elsewhere_in_another_process_gives_the_same_bytes(run_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(run_folder, moved, ignore=shutil.ignore_patterns("report"))
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nsvg.hashsalt: other\n")
    environment = os.environ | {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    command = [sys.executable, "-m", "harness.report", str(moved)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == f"report: {moved}/report/report.html"
    first, second = _bytes(run_folder / "report"), _bytes(moved / "report")
    assert [name for name in first if first[name] != second.get(name)] == []


def test_perplexity_and_bits_per_byte_equal_hand_computation(run_folder: Path) -> None:
    summary = _csv(run_folder, "summary")
    bases = dict(zip(MODELS + FLOORS, (1.1, 1.14, 1.18, 1.22, 1.85, 1.5), strict=True))
    for name, base in bases.items():
        seeds = [[row.astype(np.float32).astype(float) for row in nll_of(name, seed, 28, base)] for seed in (0, 1)]
        at_training_length = [row[180:255] for documents in seeds for row in documents]  # contexts 181 … 255
        wanted = np.exp(np.concatenate(at_training_length).mean())
        assert float(summary[name]["ppl_trained"]) == pytest.approx(wanted, rel=1e-9)
        longest = [row[1447:2047] for documents in seeds for row in documents if len(row) == 2047]
        assert float(summary[name]["ppl_longest"]) == pytest.approx(np.exp(np.concatenate(longest).mean()), rel=1e-9)
        every = np.concatenate([row for documents in seeds for row in documents])
        assert float(summary[name]["bits_per_byte"]) == pytest.approx(every.mean() / np.log(2), rel=1e-9)
        low, high = (float(summary[name][f"ppl_trained_{end}"]) for end in ("low", "high"))
        assert low < wanted < high


def test_difference_equals_hand_computation_and_is_paired(run_folder: Path) -> None:
    def mean(name: str, base: float) -> float:
        return float(np.mean([row[180:255] for seed in (0, 1) for row in nll_of(name, seed, 28, base)]))

    row = _csv(run_folder, "differences")["mamba"]
    assert float(row["trained"]) == pytest.approx(mean("mamba", 1.14) - mean("transformer", 1.1), abs=1e-6)
    summary = _csv(run_folder, "summary")["mamba"]
    alone = np.log(float(summary["ppl_trained_high"])) - np.log(float(summary["ppl_trained_low"]))
    assert float(row["trained_high"]) - float(row["trained_low"]) < alone / 2


def test_timings_equal_hand_computation(run_folder: Path) -> None:
    rows = [row for row in RecordStore(run_folder) if row.model == "ttt_linear"]
    decode = [v.seconds for row in rows if isinstance(v := row.values, Decode) and (v.batch, v.context) == (1, 2048)]
    first = [v.seconds for row in rows if isinstance(v := row.values, FirstToken) and v.length == 2048]
    prefill = [v.seconds for row in rows if isinstance(v := row.values, Prefill) and v.length == 2048]
    assert len(decode) == len(prefill) == 2
    summary = _csv(run_folder, "summary")["ttt_linear"]
    for p in (50, 90, 99):
        wanted = np.percentile(np.concatenate(decode), p) * 1e3
        assert float(summary[f"decode_p{p}"]) == pytest.approx(wanted, rel=1e-9)
    assert float(summary["prefill"]) == pytest.approx(2048 / np.median(np.concatenate(prefill)), rel=1e-9)
    assert float(summary["first_token"]) == pytest.approx(1e3 * np.median(np.concatenate(first)), rel=1e-9)
    assert (int(summary["state_bytes"]), int(summary["peak_bytes"])) == (122_880, 300_000_000 + 4000 * 2048 * 3)
    assert int(summary["parameters"]) == 802_560


def test_decoding_is_told_by_batch(run_folder: Path) -> None:
    rows = [row.values for row in RecordStore(run_folder) if row.model == "ttt_linear"]
    eight = [v.seconds for v in rows if isinstance(v, Decode) and (v.batch, v.context) == (8, 2048)]
    table = _csv(run_folder, "decode-batches")["ttt_linear"]
    assert float(table["ms_8"]) == pytest.approx(1e3 * np.median(np.concatenate(eight)), rel=1e-9)
    assert float(table["rate_8"]) == pytest.approx(8 / np.median(np.concatenate(eight)), rel=1e-9)
    assert float(table["ms_1"]) == pytest.approx(float(_csv(run_folder, "summary")["ttt_linear"]["decode_p50"]))
    assert int(table["state_bytes"]) == 8 * 122_880


def test_what_drifts_is_marked_where_it_stands_and_told_where_it_is_quoted(run_folder: Path) -> None:
    with (run_folder / "report" / "tables" / "timings.csv").open() as file:
        rows = list(csv.DictReader(file))
    doubts = {(row["model"], row["kind"], row["batch"], row["at"]): row["doubts"] for row in rows if row["doubts"]}
    assert doubts == {("mamba", "decode", "8", "2048"): "drifts by +23 %"}
    sentence = "Timings to distrust: mamba decode at 2048 × 8 (drifts by +23 %)."
    for name in ("summary", "cost"):
        assert sentence in (run_folder / "report" / "tables" / f"{name}.md").read_text()


def test_cost_is_time_and_flops_a_token(run_folder: Path) -> None:
    row, summary = _csv(run_folder, "cost")["ttt_linear"], _csv(run_folder, "summary")["ttt_linear"]
    assert float(row["prefill_ms"]) == pytest.approx(1e3 / float(summary["prefill"]), rel=1e-9)
    assert float(row["prefill_mflop"]) == pytest.approx(100 / 2048)
    assert float(row["train_mflop"]) == pytest.approx(1000 / 1024)
    assert float(row["decode_rate"]) == pytest.approx(1e6 / (float(summary["decode_p50"]) / 1e3) / 1e9)
    assert row["state_bytes"] == summary["state_bytes"]


def test_floors_stand_below_the_models_and_models_in_their_fixed_order(run_folder: Path) -> None:
    assert list(_csv(run_folder, "summary")) == [*MODELS, *FLOORS]


def test_the_failed_row_is_told_everywhere(run_folder: Path) -> None:
    page, summary = (run_folder / "report" / name for name in ("report.html", "summary.md"))
    assert "prefill: transformer: oom at 4096 (DefaultCPUAllocator: not enough memory)" in page.read_text()
    assert "- not measured: prefill: transformer: oom at 4096" in summary.read_text()
    assert _csv(run_folder, "summary")["transformer"]["status"] == "prefill oom"
    assert {row["status"] for name, row in _csv(run_folder, "summary").items() if name != "transformer"} == {"ok"}


def test_markdown_shows_what_the_page_shows(run_folder: Path) -> None:
    page, summary = ((run_folder / "report" / name).read_text() for name in ("report.html", "summary.md"))
    row = _csv(run_folder, "summary")["mamba"]
    value, low, high = (f"{float(row[f'ppl_trained{end}']):.2f}" for end in ("", "_low", "_high"))
    assert f"| {value} [{low}, {high}] |" in summary
    assert f'<td>{value} <span class="interval">[{low}, {high}]</span></td>' in page
    for figure in FIGURES:
        assert f"](figures/{figure}.png)" in summary


def test_captions_say_documents_seeds_interval_and_convention(run_folder: Path) -> None:
    text = (run_folder / "report" / "report.html").read_text()
    caption = (
        "28 test documents, the mean of 2 seeds; 95 % intervals: paired bootstrap over documents, seeds fixed; "
        "convention: position"
    )
    assert text.count(caption) >= 4


def test_conditions_mark_what_differs_and_nothing_else(run_folder: Path) -> None:
    table = _csv(run_folder, "conditions")
    assert {key for key, row in table.items() if row["differs"]} == {"kernel_path"}
    assert table["seeds"]["mamba"] == "0, 1"
    assert table["load_average"]["mamba"] == "1.35–1.45"


def test_gate_job_and_provenance(run_folder: Path) -> None:
    gate = _csv(run_folder, "gate")["prefill + step = forward"]
    assert (gate["mamba"], gate["mamba_bound"], gate["mamba_passed"]) == ("6.2e-06", "0.0001", "True")
    job = _csv(run_folder, "job")
    assert float(job["whole job"]["wall"]) == pytest.approx(2 * 411.2)
    assert float(job["whole job"]["cpu"]) == pytest.approx(2 * 702.9)
    assert float(job["timing"]["wall"]) == pytest.approx(2 * 88.1)
    provenance = _csv(run_folder, "provenance")
    assert provenance["git: commit"]["value"] == "0123456789abcdef0123456789abcdef01234567"
    assert provenance["data_hash"]["value"] == "5eed5eed"


def test_seeds_are_listed_with_a_t_interval(run_folder: Path) -> None:
    row = _csv(run_folder, "seeds")["mamba"]
    one, two = float(row["seed_0"]), float(row["seed_1"])
    assert float(row["mean"]) == pytest.approx((one + two) / 2)
    half = 12.7062047 * abs(one - two) / 2  # t(0.975, 1) · s / √2 of two values
    assert float(row["mean_high"]) - float(row["mean"]) == pytest.approx(half, rel=1e-5)


class Page(HTMLParser):
    """Collects ids and links, and checks that every element is closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.links: list[tuple[str, str]] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for key, value in attrs:
            if key == "id":
                self.ids[value or ""] += 1
            if key in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append((tag, value or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_stands_alone(run_folder: Path) -> None:
    text = (run_folder / "report" / "report.html").read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert [name for name, count in page.ids.items() if count > 1] == []
    assert {target for _, target in page.links if not target.startswith("#")} == set()
    assert {target[1:] for _, target in page.links} <= set(page.ids)
    assert page.tags["svg"] == page.tags["figure"] == page.tags["figcaption"] == len(FIGURES)
    assert page.tags["script"] == page.tags["link"] == 0
    assert "@import" not in text
    assert "url(http" not in text


def test_latex_is_plain_ascii_below_its_comment(run_folder: Path) -> None:
    for path in (run_folder / "report" / "tables").glob("*.tex"):
        assert "\n".join(path.read_text().splitlines()[1:]).isascii(), path.name


def test_terminal_summary_fits_eighty_columns(run_folder: Path) -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(terminal_summary(run_folder))
    text = console.export_text()
    assert "…" not in text
    row = _csv(run_folder, "summary")["mamba"]
    half = (float(row["bits_per_byte_high"]) - float(row["bits_per_byte_low"])) / 2
    line = next(line for line in text.splitlines() if line.strip().startswith("mamba"))
    assert f"{float(row['bits_per_byte']):.3f} ±{half:.3f}" in line
    assert line.split()[-1] == f"{float(row['decode_p50']):.2f}"
    assert "not measured: prefill: transformer: oom at 4096" in text
