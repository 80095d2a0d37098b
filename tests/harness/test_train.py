"""Training: the schedule, equal results after an interruption, and NaN as an end with a name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from baselines.interface import SequenceModel
from baselines.registry import find
from harness.config import RunConfig
from harness.data.batches import Batches
from harness.data.tokens import TokenStore
from harness.train.checkpoint import finished_training, save_checkpoint
from harness.train.config import TrainConfig
from harness.train.loop import NonFiniteLoss, Trainer, loss_of, make_optimizer
from harness.train.resume import states
from harness.train.schedule import learning_rate


def test_learning_rate_warms_up_then_falls_to_the_final_rate() -> None:
    config = TrainConfig(tokens=100_000, length=100, batch_size=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(step, config) for step in range(config.steps)]
    assert config.steps == 100
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert rates[10 + 89 // 2] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 44 / 89)))
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_loss_is_that_of_the_next_token(gru: SequenceModel) -> None:
    windows = torch.randint(256, (3, 9))
    logits = gru.model(windows[:, :-1]).logits.double()
    wanted = [-logits[b, i].log_softmax(-1)[windows[b, i + 1]] for b in range(3) for i in range(8)]
    assert loss_of(gru.model, windows).detach().item() == pytest.approx(torch.stack(wanted).mean().item(), abs=1e-6)


def test_weight_decay_spares_vectors_and_what_a_family_exempts(gru: SequenceModel) -> None:
    gru.model.embed.weight._no_weight_decay = True
    decayed, exempt = make_optimizer(gru.model, TrainConfig()).param_groups
    assert decayed["weight_decay"] == 0.1
    assert exempt["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {2}
    assert any(p is gru.model.embed.weight for p in exempt["params"])
    assert len(decayed["params"]) + len(exempt["params"]) == len(list(gru.model.parameters()))


class Killed(Exception):
    pass


def die(*_: object, **__: object) -> None:
    raise Killed


def trainer(config: RunConfig, folder: Path, die_at: int | None = None) -> Trainer:
    torch.manual_seed(config.seed)
    baseline = find("mine.gru").build(config.model["gru"], 256)
    batches = Batches(TokenStore.build(config.data, Path(config.output)).documents("train"), 32, 2, config.seed)
    made = Trainer(
        baseline, batches, config.train, config.runtime, folder / "resume", Accelerator(cpu=True), lambda _: None
    )
    if die_at is not None:
        update = made._update

        def dying(step: int) -> torch.Tensor:
            if step == die_at:
                raise Killed
            return update(step)

        made._update = dying  # type: ignore[method-assign]
    return made


def test_a_killed_training_continues_to_the_same_bits(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two steps, in the writing of a state, and in the removal of the state before."""
    whole = trainer(config, tmp_path / "whole")
    training = whole.run()
    folder = tmp_path / "killed" / "resume"
    with pytest.raises(Killed):
        trainer(config, tmp_path / "killed", die_at=7).run()
    assert [state.name for state in states(folder)] == ["step-000000006"]
    for call in ("dcp.save", "shutil.rmtree"):
        with monkeypatch.context() as patched:
            patched.setattr(f"harness.train.resume.{call}", die)
            made = trainer(config, tmp_path / "killed")
            with pytest.raises(Killed):
                made.run()
    with pytest.raises(Killed):
        trainer(config, tmp_path / "killed", die_at=13).run()
    resumed = trainer(config, tmp_path / "killed")
    assert [state.name for state in states(folder)] == ["step-000000012"]
    again = resumed.run()
    assert again.loss == training.loss
    assert again.tokens_seen == training.tokens_seen == [128 * i for i in range(1, 11)]
    for a, b in zip(whole.baseline.model.parameters(), resumed.baseline.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert training.loss[-1] < training.loss[0]


def test_seeds_differ(config: RunConfig, tmp_path: Path) -> None:
    first = trainer(config, tmp_path / "a").run()
    config.seed = 1
    assert trainer(config, tmp_path / "b").run().loss != first.loss


def test_nan_ends_training_with_its_name(config: RunConfig, tmp_path: Path) -> None:
    made = trainer(config, tmp_path)
    with torch.no_grad():
        made.baseline.model.embed.weight[97] = float("nan")
    with pytest.raises(NonFiniteLoss, match="became nan within 128 tokens"):
        made.run()


def test_a_checkpoint_is_whole_or_not_there(config: RunConfig, tmp_path: Path) -> None:
    training = trainer(config, tmp_path).run()
    folder = tmp_path / "checkpoint"

    def broken(temporary: Path) -> None:
        (temporary / "weights").write_text("half")
        raise Killed

    with pytest.raises(Killed):
        save_checkpoint(folder, broken, training)
    assert finished_training(folder) is None
    save_checkpoint(folder, lambda temporary: None, training)
    assert finished_training(folder) == training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 0}, "train.length is 0"),
        ({"tokens": 10}, "less than one step"),
        ({"warmup": 1.0}, "train.warmup is 1.0"),
        ({"learning_rate": 0.0}, "train.learning_rate is 0.0"),
        ({"final_learning_rate": 1.0}, "train.final_learning_rate is 1.0"),
    ],
)
def test_impossible_recipes_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig(**options)  # type: ignore[arg-type]
