"""Does a mistake in the library make a test fail? Injects faults one at a time and runs the tests on each.

    python -m tests.ttt_impl.mutants            all of them, some minutes
    python -m tests.ttt_impl.mutants NAME ...   only these

A mutant that no test kills is printed as SURVIVED and makes the exit status 1. Every mutant is run in a fork of this
process, on a copy of the package with one line changed, so the checkout is never touched and torch is imported once.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

import ttt_impl  # noqa: F401  (what it imports from outside is then loaded once, before the forks)

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """One fault: in `file`, the only occurrence of `old` becomes `new`; `tests` are tried in order."""

    file: str
    old: str
    new: str
    tests: str


OFFICIAL, DUAL, SPLITS = "test_official.py", "test_dual.py", "test_splits.py"
MODEL, GENERATION, CACHE, TASKS = "test_model.py", "test_generation.py", "test_cache.py", "test_inner_tasks.py"
FIXED = "test_fixed_cache.py"
REFERENCE, DIAGNOSTICS = "test_reference.py", "test_diagnostics.py"

MUTANTS = {
    # The inner loop itself.
    "scores_without_bias": Mutant(
        "prepared.py", "causal * (q @ k.mT)", "causal * (q[..., :-1] @ k[..., :-1].mT)", DUAL
    ),
    "mask_excludes_own_token": Mutant("prepared.py", "-1).tril()", "-1).tril(-1)", DUAL),
    "mask_includes_next_token": Mutant("prepared.py", "-1).tril()", "-1).tril(1)", DUAL),
    "token_rate_of_the_gradient": Mutant("prepared.py", "tok[:, None] * torch", "tok[None, :] * torch", DUAL),
    "learning_rate_shifted": Mutant("prepared.py", "lr[..., None]", "lr.roll(1, -1)[..., None]", DUAL),
    "bias_never_updated": Mutant(
        "prepared.py", "Prepared(q, k, last * k,",
        "Prepared(q, k, last * torch.cat([k[..., :-1], 0 * k[..., -1:]], -1),", DUAL,
    ),
    "update_with_rate_before_last": Mutant("prepared.py", "last = tok[-1]", "last = tok[len(tok) - 2]", DUAL),
    "target_is_the_label": Mutant("learner.py", "return v - k if self.residual else v", "return v", REFERENCE),
    "residual_on_the_answer": Mutant(
        "learner.py", "q + answer if self.residual", "z + answer if self.residual", OFFICIAL
    ),
    "gradient_without_mean": Mutant(
        "inner_step.py", "project(a, z, mean, rstd, ones), z,",
        "project(a, z, mean, rstd, ones) + rstd * a.mean(-1, keepdim=True), z,", DUAL,
    ),
    "state_in_bfloat16": Mutant(
        "scan_linear.py", "out=w[m + 1])", "out=w[m + 1]).copy_(w[m + 1].bfloat16())", DUAL
    ),
    "epsilon_of_pytorch": Mutant("learner.py", "EPSILON = 1e-6", "EPSILON = 1e-5", REFERENCE),
    # Around it.
    "rope_pairs_in_halves": Mutant("rope.py", "x.unflatten(-1, (-1, 2))", "x.unflatten(-1, (2, -1)).mT", OFFICIAL),
    "rope_off_by_one": Mutant("layout.py", "device)[None] % self", "device)[None].add(1) % self", OFFICIAL),
    "token_rate_not_clamped": Mutant("layer.py", "token_idx).clamp_min(0)", "token_idx)", OFFICIAL),
    "rate_over_root_of_width": Mutant("layer.py", "* self.heads / u", "* (self.heads / 24) ** 0.5 / u", OFFICIAL),
    "gate_reads_the_query": Mutant("layer.py", "rate = self._gate(u)", "rate = self._gate(q)", OFFICIAL),
    "gate_with_exact_gelu": Mutant("layer.py", 'approximate="tanh"', 'approximate="none"', OFFICIAL),
    "post_norm_epsilon": Mutant("layer.py", "eps=1e-6", "eps=1e-5", OFFICIAL),
    # The backward passes.
    "no_gradient_through_the_scale": Mutant("inner_step.py", "dz.addcmul_(x, width", "dz.addcmul_(0 * x, width", DUAL),
    "no_curvature_of_gelu": Mutant("scan_mlp.py", ".addcmul_(dghat1.mul_(back), curvature1)", "", DUAL),
    "no_gradient_through_w2_in_g1": Mutant("scan_mlp.py", "(dback.mT, step.ghat)", "(dback.mT, 0 * step.ghat)", DUAL),
    "no_gradient_of_the_last_rate": Mutant("scan_mlp.py", "(x2_dw2 * ghat2[m]).sum", "(0 * ghat2[m]).sum", DUAL),
    # Reading in pieces.
    "step_folds_too_little": Mutant("step.py", "self.last = tok[-1]", "self.last = tok[0] * 0.99", SPLITS),
    "rows_kept_after_closing": Mutant("step.py", "x.masked_fill(closing, 0)", "x.clone()", SPLITS),
    "open_rows_forgotten": Mutant("walk.py", "state.weights, state.gradients", "state.weights, None", SPLITS),
    "open_mini_batch_closed": Mutant("layout.py", "close[:, -1] = False", "close[:, -1] = True", SPLITS),
    "documents_share_weights": Mutant("layout.py", "    fresh[:, 0] = False", "    fresh[:] = False", SPLITS),
    "convolution_sees_padding": Mutant("reading.py", "x if padding is None else x", "x if True else x", MODEL),
    "convolution_crosses_documents": Mutant("convolution.py", "age[None] >= torch", "age[None] >= 0 * torch", MODEL),
    "padding_counted_as_read": Mutant("cache.py", "p + length - s for", "p + length for", MODEL),
    "beams_leave_weights_behind": Mutant("cache.py", "self.fast.each(per_head)", "self.fast", CACHE),
    "fixed_past_overwritten": Mutant("cache.py", "recent.clone() if self.fixed else recent", "recent", FIXED),
    "fixed_state_moves_away": Mutant("cache.py", "if self.fixed and self.fast", "if False and self.fast", FIXED),
    "device_counter_stands_still": Mutant("cache.py", "self.counter += length", "self.counter += 0", FIXED),
    "closing_decided_while_recording": Mutant(
        "layout.py", "slots + 1 == size, taken=taken)", "slots + 1 == size, taken=taken, fill=(0,))", FIXED
    ),
    "crop_keeps_rows": Mutant("cache.py", "self.fast.first_rows(rows)", "self.fast", CACHE),
    "first_pair_not_masked": Mutant("layer.py", "rate.masked_fill(reading.first[:, None], 0)", "rate", TASKS),
    "after_is_before": Mutant("diagnostics.py", "inputs._replace(q=inputs.k)", "inputs", DIAGNOSTICS),
}  # fmt: skip
EVERY = (REFERENCE, OFFICIAL, DUAL, SPLITS, MODEL, CACHE, TASKS, DIAGNOSTICS, GENERATION)


def killed(mutant: Mutant, everything: bool = True) -> bool:
    """Whether a test fails on the mutant: its own file first, then (if asked) all others."""
    with tempfile.TemporaryDirectory() as folder:
        _copy(mutant, Path(folder))
        if _fails(Path(folder), [mutant.tests]):
            return True
        return everything and _fails(Path(folder), [name for name in EVERY if name != mutant.tests])


def _copy(mutant: Mutant, folder: Path) -> None:
    """The package with the fault, and its tests, in `folder`."""
    shutil.copytree(ROOT / "ttt_impl", folder / "ttt_impl", ignore=shutil.ignore_patterns("__pycache__"))
    tests = folder / "tests" / "ttt_impl"
    tests.mkdir(parents=True)
    for path in (ROOT / "tests" / "ttt_impl").glob("*.py"):
        shutil.copy(path, tests)
    (folder / "tests" / "__init__.py").touch()
    target = folder / "ttt_impl" / mutant.file
    source = target.read_text()
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file}: {mutant.old!r} occurs {source.count(mutant.old)} times; it must occur once")
    target.write_text(source.replace(mutant.old, mutant.new))


def _fails(folder: Path, names: list[str]) -> bool:
    """Run test files in a fork; True if a test failed."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            for name in [n for n in sys.modules if n.split(".")[0] in ("ttt_impl", "tests", "conftest")]:
                del sys.modules[name]
            os.chdir(folder)
            sys.path[:] = [str(folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
            files = [str(folder / "tests" / "ttt_impl" / n) for n in names]
            options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", f"--rootdir={folder}"]
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            status = int(pytest.main([*options, *files]))
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1):
        raise RuntimeError(
            f"pytest ended with status {code} on {names}: the fault must not keep the tests from running"
        )
    return code == 1


def main(names: list[str]) -> int:
    """Run the named mutants, or all."""
    survivors = 0
    for name in names or MUTANTS:
        died = killed(MUTANTS[name])
        survivors += not died
        print(f"{'killed  ' if died else 'SURVIVED'}  {name}", flush=True)
    print(f"{survivors} survived")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
