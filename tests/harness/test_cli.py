"""The command line: help that keeps up with the configs, and one line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import flags_first, main
from harness.config_errors import CONF
from harness.help import GROUPS, description


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def options(group: str) -> str:
    return ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


def test_help_explains_every_group_and_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["harness", "--help"])
    main()
    text = capsys.readouterr().out
    folders = {path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders == set(GROUPS)
    for path in CONF.glob("*/*.yaml"):
        words = description(path)
        assert len(words) > 20, f"{path} says nothing about itself"
        assert f"{path.stem}" in text
        assert words in text
    assert "* quickstart" in text


def test_flags_may_stand_anywhere() -> None:
    given = ["model=[a]", "--config-dir", "x", "seed=0,1", "--multirun", "~debug"]
    assert flags_first(given) == ["--config-dir", "x", "--multirun", "model=[a]", "seed=0,1", "~debug"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("modell=x", "modell: no such key; choose one of allow_unlike, data, folder, measure, model, name"),
        ("+foo=1", "foo: no such key; choose one of allow_unlike, data"),
        ("train.tokns=5", "train.tokns: no such key; choose one of batch_size, beta1"),
        ("train.tokens=abc", "train.tokens: Value 'abc'"),
        ("model=tttt", "model=tttt: no such option; choose one of attention_global, "),
        ("model=[my_gru,tttt]", "model=tttt: no such option; choose one of"),
        ("model=[]", "model=[] selects no model"),
        ("model.my_gru.hiden=3", "model.my_gru.hiden: no such key; choose one of checkpoint, family, hidden_size"),
        ("model.my_gru.hidden_size=x", "model.my_gru.hidden_size: Value 'x'"),
        ("+model.my_gru.x=3", "model.my_gru.x: no such key; choose one of checkpoint, family, hidden_size"),
        ("+model.other.x=3", "model.other has options (x) but is not selected"),
        ("+model.other={family:nothing}", "no family 'nothing'; choose one of"),
        ("model.my_gru.hidden_size=8", "model.my_gru: the nearest setting has 2,480 parameters"),
        ("model.my_gru.checkpoint=nowhere", "model.my_gru.checkpoint=nowhere: no such folder"),
        ("data=xx", f"data=xx: no such option; choose one of {options('data')}"),
        ("data=folder data.path=/not/there", "data.path is '/not/there'"),
        ("experiment=zzz", f"experiment=zzz: no such option; choose one of {options('experiment')}"),
        ("debug=z", "debug=z: no such option; choose one of smoke"),
        ("a=b=c=", "a=b=c=: not a valid override"),
        ("size.tolerance=2", "size.tolerance is 2.0: must lie between 0 and 1"),
        ("runtime.dtype=int8", "runtime.dtype is 'int8': choose one of float32, bfloat16"),
        ("runtime.engine=zero", "runtime.engine is 'zero': choose one of ddp, fsdp"),
        ("runtime.micro_batch=0", "runtime.micro_batch is 0: must be at least 1"),
        ("measure.prefill_lengths=[0]", "measure.prefill_lengths is [0]"),
        ("reference=ttt_table9", "reference=ttt_table9: no such file; give the path of a .yaml file or one of lact, "),
        ("reference=ttt_table1", "none of which is in model=[my_gru]"),
        ("measure.max_length=100000000", "the longest test document has"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: str,
    words: str,
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code = call(monkeypatch, "--config-dir", str(workplace / "mine"), "model=[my_gru]", *arguments.split())
    captured = capfd.readouterr()
    assert code == 2
    assert words in captured.err
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1


def test_cuda_is_not_made_up(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call(monkeypatch, "--config-dir", str(workplace / "mine"), "model=[my_gru]", "runtime.device=cuda") == 2
    assert "torch finds no CUDA device here" in capfd.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; import harness.cli; from harness.help import help_text; help_text();"
        " print({'torch', 'transformers', 'pandas', 'matplotlib', 'numpy', 'hydra'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("arguments", ["--cfg job", "train.tokns=5", "size.tolerance=2 --cfg job"])
def test_the_config_is_composed_without_torch(arguments: str) -> None:
    code = (
        f"import sys; sys.argv += {arguments.split()!r}\nfrom harness.cli import main\ntry: main()\n"
        "except SystemExit: print({'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
