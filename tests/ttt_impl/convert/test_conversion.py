"""Whole conversions into folders that `from_pretrained` reads."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.ttt_impl.convert.samples import (
    DIMENSIONS,
    EMBEDDING,
    HEAD,
    jax_file,
    save_bin,
    save_old_bin,
    save_safetensors,
    save_shards,
)
from tests.ttt_impl.convert.streaming_writer import array, model_shapes, random_params, record
from ttt_impl import TTTForCausalLM
from ttt_impl.convert import CheckpointError, convert, read_streaming_checkpoint


@pytest.mark.parametrize("learner", ["linear", "mlp"])
@pytest.mark.parametrize("mamba", [True, False])
def test_jax_file_becomes_a_model(tmp_path, learner, mamba):
    source = jax_file(tmp_path, learner, mamba=mamba)
    result = convert(source, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(model, TTTForCausalLM)
    assert model.dtype == torch.bfloat16
    assert model.config.ttt_base_lr == {"linear": 1.0, "mlp": 0.1}[learner]
    assert (result.learner, result.backbone) == (learner, "mamba" if mamba else "transformer")
    found = {name: value for name, value in model.state_dict().items() if name != HEAD}
    expected = dict(read_streaming_checkpoint(source))
    assert sum(value.numel() for value in found.values()) == sum(value.numel() for value in expected.values())
    block = "seq_modeling_block"
    assert torch.equal(found[f"model.layers.1.{block}.W1"], expected[f"model/h/1/{block}/ttt_dense_0"])
    assert torch.equal(found[f"model.layers.1.{block}.q_proj.weight"].T, expected[f"model/h/1/{block}/wq/kernel"])
    assert torch.equal(model.lm_head.weight, expected["model/wte/embedding"])
    logits = model.float()(torch.arange(19)[None]).logits
    assert torch.isfinite(logits).all()


def test_params_file_with_untied_head(tmp_path):
    """Runs that save no optimizer state write `streaming_params`, whose key paths start at "model" and "lm_head"."""
    params = random_params(model_shapes("linear", **DIMENSIONS, tied=False))
    source = tmp_path / "streaming_params"
    source.write_bytes(b"".join(record(path, array(value)) for path, value in params.items()))
    assert convert(tmp_path, tmp_path / "out").step is None
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = dict(read_streaming_checkpoint(source))
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, expected["lm_head/kernel"].T)
    assert torch.equal(model.model.embed_tokens.weight, expected["model/wte/embedding"])


@pytest.mark.parametrize("dtype", ["keep", "float32", "bfloat16"])
def test_dtype(tmp_path, dtype):
    result = convert(jax_file(tmp_path), tmp_path / "out", dtype=dtype)
    stored = "bfloat16" if dtype == "keep" else dtype
    assert result.dtype == stored
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(value.dtype) for value in tensors.values()} == {f"torch.{stored}"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == getattr(torch, stored)


def test_result_names_sizes_and_checksum(tmp_path):
    source = jax_file(tmp_path)
    result = convert(source, tmp_path / "out")
    note = json.loads((tmp_path / "out" / "conversion.json").read_text())
    weights = tmp_path / "out" / "model.safetensors"
    assert note["sha256"] == {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert note["sha256"] == result.sha256
    tensors = load_file(weights)
    assert HEAD not in tensors
    assert note["parameters"] == sum(value.numel() for value in tensors.values())
    assert note["weight_bytes"] == 2 * note["parameters"]
    assert note["source"] == f"{tmp_path.name}/streaming_train_state"
    assert note["source_bytes"] == source.stat().st_size
    assert (note["step"], note["size"], note["learner"], note["dtype"]) == (4800, "custom", "linear", "bfloat16")
    assert note["versions"]["torch"] == torch.__version__
    again = convert(source, tmp_path / "again")
    assert again == result


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("save", [save_safetensors, save_shards, save_bin, save_old_bin])
def test_community_folders(tmp_path, weights, save, with_config):
    state, config = weights
    source = tmp_path / "in"
    source.mkdir()
    save(source, state)
    (source / "tokenizer.json").write_text("{}")
    if with_config:
        (source / "config.json").write_text(json.dumps(config | {"ttt_base_lr": 0.5}))
    convert(source, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.ttt_base_lr == (0.5 if with_config else 1.0)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("same", [True, False])
def test_explicit_head_is_tied_only_if_it_repeats_the_embedding(tmp_path, weights, same):
    state, _ = weights
    head = state[EMBEDDING] if same else state[EMBEDDING] + 1
    save_bin(tmp_path, state | {HEAD: head})
    convert(tmp_path / "pytorch_model.bin", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.tie_word_embeddings is same
    assert (HEAD in load_file(tmp_path / "out" / "model.safetensors")) is not same
    assert torch.equal(model.lm_head.weight, head)


@pytest.mark.parametrize("fault", [OSError("disk full"), KeyboardInterrupt()])
def test_failure_while_writing_leaves_nothing(tmp_path, monkeypatch, fault):
    source = jax_file(tmp_path)

    def fail(self, folder, **kwargs):
        (folder / "model.safetensors").write_bytes(b"half")
        raise fault

    monkeypatch.setattr(TTTForCausalLM, "save_pretrained", fail)
    with pytest.raises(type(fault)):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["streaming_train_state"]


def lose_one(tensors):
    tensors.pop("model.norm.weight")


def widen_all(tensors):
    tensors.update({name: value.float() for name, value in tensors.items()})


@pytest.mark.parametrize("damage", [lose_one, widen_all])
def test_size_check_reads_the_disk(tmp_path, monkeypatch, damage):
    source = jax_file(tmp_path)
    save = TTTForCausalLM.save_pretrained

    def save_wrongly(self, folder, **kwargs):
        save(self, folder, **kwargs)
        tensors = load_file(folder / "model.safetensors")
        damage(tensors)
        save_file(tensors, folder / "model.safetensors")

    monkeypatch.setattr(TTTForCausalLM, "save_pretrained", save_wrongly)
    with pytest.raises(CheckpointError, match=r"size check failed: expected .* parameters in .* bytes, the disk holds"):
        convert(source, tmp_path / "out")


def test_files_are_flushed_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    source, events = jax_file(tmp_path), []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), sync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append(new.name), rename(old, new))[1])
    convert(source, tmp_path / "out")
    files = len(list((tmp_path / "out").iterdir()))
    assert events == ["sync"] * (files + 1) + ["out"]


def test_command_line(tmp_path):
    source = jax_file(tmp_path)
    command = [sys.executable, "-m", "ttt_impl.convert", str(tmp_path), str(tmp_path / "out"), "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    note = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert f"{source.stat().st_size:,} bytes, step 4800" in done.stdout
    assert "TTT custom, learner linear, mamba backbone" in done.stdout
    assert f"{note['parameters']:,} parameters, {4 * note['parameters']:,} bytes in float32: as expected" in done.stdout
    assert f"{note['sha256']['model.safetensors']}  model.safetensors" in done.stdout
