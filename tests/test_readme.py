"""The README's commands and code, run as a reader would type them, in smoke size."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import main
from harness.compare.__main__ import main as tell_apart
from harness.records import RecordStore
from harness.report.__main__ import main as draw_again
from tests import readme

ROOT = Path(__file__).parent.parent
EXAMPLE_RUN = "results/runs/quickstart-1a2b3c4d"
HARNESS = [line for line in readme.commands() if line.startswith("python -m harness ")]


@pytest.fixture(scope="module")
def place(workplace: Path) -> Path:
    """The reader's folder: the README's files, texts, and a finished smoke run of the quickstart."""
    (workplace / "texts").mkdir()
    text = "We the people of the United States, in order to form a more perfect union. " * 10
    for i in range(20):
        (workplace / "texts" / f"{i}.txt").write_text(f"{i} {text}")
    (workplace / "texts.jsonl").write_text("".join(f'{{"text": "{i} {text}"}}\n' for i in range(20)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.setattr(sys, "argv", ["harness", "debug=smoke", "measure.timing=false", "name=quickstart"])
        with pytest.raises(SystemExit, match="0"):
            main()
    return workplace


def example_run(place: Path) -> Path:
    (folder,) = (place / "results" / "runs").glob("quickstart-*")
    return folder


def at_home(text: str, place: Path) -> str:
    """A command or code of the README with the folders that this run has."""
    run = example_run(place).relative_to(place)
    checkpoints = {"A": run / "seed0/transformer/checkpoint", "B": run / "seed0/mamba/checkpoint"}
    text = text.replace(EXAMPLE_RUN, str(run))
    return re.sub(r"checkpoint=([AB])\b", lambda m: f"checkpoint={checkpoints[m[1]]}", text)


@pytest.mark.usefixtures("bare_figures")
@pytest.mark.parametrize("command", HARNESS)
def test_a_command(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    arguments = shlex.split(at_home(command, place))[3:]
    smoke = ["debug=smoke", "train.tokens=2048", "measure.timing=false", "output=elsewhere", "data.test_fraction=0.3"]
    if "model=" not in command:
        smoke.append("model=[transformer]")
    monkeypatch.setattr(sys, "argv", ["harness", *arguments, *([] if "--help" in arguments else smoke)])
    if "--help" in arguments:
        main()
        return
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0


def test_the_report_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = [line for line in readme.commands() if line.startswith(f"python -m harness.report {EXAMPLE_RUN}")]
    page = example_run(place) / "report" / "report.html"
    before = page.read_bytes()
    page.unlink()
    monkeypatch.chdir(place)
    assert draw_again(shlex.split(at_home(command, place))[3:]) == 0
    assert page.read_bytes() == before


def test_runs_beside_a_paper_and_beside_each_other(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RUN is the whole example run, RUN1 and RUN2 two of its models each; figures are left to the tests of them."""
    run = example_run(place)
    halves = {"RUN1": ("transformer", "mamba"), "RUN2": ("ttt_linear", "ttt_mlp")}
    for name, models in halves.items():
        (place / name).mkdir()
        (place / name / "seed0").symlink_to(run / "seed0")
        for record in RecordStore(run):
            if record.model in models:
                RecordStore(place / name).append(record)
    monkeypatch.chdir(place)
    monkeypatch.setattr("harness.report.page.draw", lambda *given: [])
    found = [shlex.split(line) for line in readme.commands() if re.search(r"\bRUN", line)]
    assert len(found) == 3
    for _, _, module, *arguments in found:
        command = {"harness.report": draw_again, "harness.compare": tell_apart}[module]
        assert command([str(run) if word == "RUN" else word for word in arguments]) == 0
    assert "| Figure 10, right |" in (run / "report" / "summary.md").read_text()


def test_the_code_that_loads_a_checkpoint(place: Path) -> None:
    (code,) = [block for block in readme.python_blocks() if "from_pretrained" in block and "class" not in block]
    code = at_home(code, place).replace("max_new_tokens=100", "max_new_tokens=5")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=True
    )
    assert done.stdout.startswith(b"The State of the Union is")


def test_the_two_commands_are_the_makefile_s() -> None:
    for target, part in (("compare", "python -m harness"), ("test", "python -m pytest")):
        assert f"make {target}" in readme.commands()
        shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert part in shown
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", readme.TEXT):
        assert (ROOT / target).exists(), target
