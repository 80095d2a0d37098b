"""One model's training as a task of the main job: from its first weights to a finished checkpoint."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

from baselines.interface import SequenceModel
from baselines.registry import find
from harness.data.batches import training_batches
from harness.data.tokens import TokenStore
from harness.jobs import Job
from harness.records import Training
from harness.train.checkpoint import save_checkpoint
from harness.train.engine import peers, whole_weights
from harness.train.loop import Progress, Trainer
from harness.tuning import trained_before


def train_to_checkpoint(job: Job, tokens: TokenStore, progress: Progress) -> Training:
    """Train the model of `job` (on), alone or with the other processes of torchrun; the first of them saves it."""
    config, recipe = job.config, job.config.train
    accelerator = _accelerator(job)
    torch.manual_seed(config.seed)
    baseline = _beginning(job, tokens.vocab_size)
    batches = training_batches(tokens, recipe.length, recipe.batch_size, config.seed)
    resume = job.folder / "resume"
    with peers():
        trainer = Trainer(baseline, batches, recipe, config.runtime, resume, accelerator, progress)
        training = trainer.run()
        weights = whole_weights(baseline.model)
    training.checkpoint = str(job.checkpoint.relative_to(config.run_folder))
    if accelerator.is_main_process:
        if weights is not None:
            baseline = _built(job, tokens.vocab_size)
            baseline.model.load_state_dict(weights)

        def save(folder: Path) -> None:
            baseline.save(folder)
            tokens.tokenizer().save_pretrained(folder)

        save_checkpoint(job.checkpoint, save, training)
        shutil.rmtree(resume, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return training


def _built(job: Job, vocab_size: int) -> SequenceModel:
    assert job.family is not None
    return find(job.family.family).build(job.family, vocab_size)


def _beginning(job: Job, vocab_size: int) -> SequenceModel:
    """The model before its training: of random weights, or what another run made of it."""
    assert job.family is not None
    recipe = job.config.train
    if recipe.init_from is None:
        return _built(job, vocab_size)
    folder = trained_before(recipe.init_from, job.config.seed, job.name)
    baseline = find(job.family.family).load(dataclasses.replace(job.family, checkpoint=str(folder)))
    found, wanted = baseline.model.num_parameters(), job.family.parameters(vocab_size)
    if found != wanted:
        raise ValueError(
            f"train.init_from: {folder} has {found:,} parameters, {job.name} is to have {wanted:,}:"
            " give the size and options that it was trained with"
        )
    return baseline


def _accelerator(job: Job) -> Accelerator:
    if "WORLD_SIZE" in os.environ:  # under torchrun every model's group of workers needs a store of its own
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1 + job.index)
    precision = "bf16" if job.config.runtime.dtype == "bfloat16" else "no"
    return Accelerator(cpu=job.device == "cpu", mixed_precision=precision)
