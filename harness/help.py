"""`--help`: every config group in words, read off the comments of the YAML files, so it cannot fall behind them."""

from __future__ import annotations

from pathlib import Path

CONF = Path(__file__).resolve().parent.parent / "conf"

GROUPS = {
    "experiment": "a ready comparison; sets the groups below",
    "scale": "how large an experiment is run: its models, data and recipe",
    "model": "what is compared; takes a list: model=[transformer,mamba]",
    "size": "the budget that all models meet, and what is equal in it",
    "data": "the documents",
    "train": "the recipe, the same for every model",
    "measure": "what is measured, and how often",
    "runtime": "device, number format, threads and processes",
    "debug": "overlays that make any experiment small",
}

USAGE = """\
Compares sequence models fairly: trains or loads them, gates them, measures perplexity against context length,
throughput, latency and memory, and writes tables, figures and a page.

  python -m harness                                   the experiment `quickstart`
  python -m harness model=[transformer,ttt_linear]    other models
  python -m harness train.tokens=1000000 seed=1       other values; seeds of one config share a run folder
  python -m harness model.mamba.checkpoint=FOLDER     load instead of train
  python -m harness --multirun seed=0,1,2             several runs; the report aggregates over seeds
  python -m harness experiment=ladder scale=paper     a table of a paper, at the paper's size; also gpu_hour, cpu
  python -m harness debug=smoke                       everything in seconds
  python -m harness.plan experiment=tune              what it will cost, before it is run
  python -m harness --cfg job                         print the composed config and stop
  python -m harness.report FOLDER                     draw tables and figures again; --help: otherwise
  python -m harness.compare FOLDER FOLDER             what changed between two runs

The same command again continues an interrupted run. Groups, chosen as group=option (defaults marked *):
"""

FOOTER = """
Single values: seed, name, output (where results go), folder (a run folder of your own choice), tasks (of lm-eval),
allow_unlike (keys in which models may differ and still be drawn side by side, marked with a dagger: device, dtype,
threads, compile, micro_batch, activation_checkpointing, processor, data_hash, training_tokens, training_length,
scored_bytes, seeds),
reference (numbers of a paper to draw beside ours: a file of results/reference such as ttt_table1, one result of it such
as ttt_plots.figure_10_pile_8k, or a YAML file of your own).
`--cfg job` shows every key; a key is overridden by its path: measure.repeats=20.
More configs of your own: --config-dir FOLDER (with model/, data/ … inside).
"""


def help_text() -> str:
    """The whole help page."""
    primary = (CONF / "config.yaml").read_text()
    lines = [USAGE]
    for group, words in GROUPS.items():
        lines.append(f"{group}: {words}")
        options = {path.stem: description(path) for path in sorted((CONF / group).glob("*.yaml"))}
        chosen = next((line.split(":", 1)[1] for line in primary.splitlines() if f"- {group}:" in line), "")
        selected = chosen.replace("[", " ").replace("]", " ").replace(",", " ").split()
        width = max(map(len, options), default=0)
        lines += [f"  {'*' if name in selected else ' '} {name:<{width}}  {text}" for name, text in options.items()]
        lines.append("")
    return "\n".join(lines) + FOOTER


def description(path: Path) -> str:
    """The first comment of a YAML file that is not a Hydra directive."""
    for line in path.read_text().splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.removeprefix("#").strip()
    return ""
