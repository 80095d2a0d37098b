"""What cannot be converted: one line, exit code 2, nothing on disk."""

import pytest
import torch
from safetensors.torch import save_file

from tests.ttt_impl.convert.samples import DIMENSIONS, jax_file, save_safetensors
from tests.ttt_impl.convert.streaming_writer import array, model_shapes, random_params, record, write
from ttt_impl.convert import convert
from ttt_impl.convert.__main__ import main


def refuse(capsys, *argv):
    """Run the command line on something that cannot be converted; return its single line."""
    assert main([str(argument) for argument in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_destination_in_use(tmp_path, capsys):
    source = jax_file(tmp_path)
    (tmp_path / "out").mkdir()
    convert(source, tmp_path / "out")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert "out: exists already and is not an empty folder" in refuse(capsys, source, tmp_path / "out")
    assert "exists already" in refuse(capsys, source, source)
    assert "Not a directory" in refuse(capsys, source, source / "below")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def params_with(path, value):
    return random_params(model_shapes("linear", **DIMENSIONS)) | {path: value}


BAD_JAX = {
    "missing parameter model.layers.1.ffn_norm.weight": lambda: {
        path: value
        for path, value in random_params(model_shapes("linear", **DIMENSIONS)).items()
        if path != ("model", "h", "1", "ffn_norm", "kernel")
    },
    "unexpected parameter model/h/0/seq_modeling_block/extra": lambda: params_with(
        ("model", "h", "0", "seq_modeling_block", "extra"), torch.ones(2)
    ),
    "unexpected parameter model.layers.1.seq_modeling_block.k_proj.weight": lambda: params_with(
        ("model", "h", "1", "seq_modeling_block", "wk", "kernel"), torch.ones(16, 16)
    ),
    "wrong shape: model.layers.1.mlp.up_proj.weight is [25, 16] in the file, [24, 16] in the custom linear": lambda: (
        params_with(("model", "h", "1", "feed_forward", "w3", "kernel"), torch.ones(16, 25))
    ),
    "parameter model/h/1/feed_forward/w3/kernel has shape [2, 2, 2], expected 2 dimensions": lambda: params_with(
        ("model", "h", "1", "feed_forward", "w3", "kernel"), torch.ones(2, 2, 2)
    ),
    "unknown learner": lambda: params_with(("model", "h", "0", "seq_modeling_block", "ttt_dense_1"), torch.ones(2)),
}


@pytest.mark.parametrize("message", BAD_JAX)
def test_jax_files_that_fit_no_model(tmp_path, capsys, message):
    source = write(tmp_path / "streaming_train_state", BAD_JAX[message]())
    assert message in refuse(capsys, source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["streaming_train_state"]


def test_truncated_and_foreign_files(tmp_path, capsys):
    content = jax_file(tmp_path).read_bytes()
    cases = {
        "truncated": content[:-7],
        "foreign msgpack": content + record(("params", "x"), array(torch.ones(1))).replace(b"\x92", b"\x93", 1),
        "not a checkpoint (starts with 0x3c21646f)": b"<!doctype html>",
        "not a checkpoint (starts with 0x)": b"",
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "truncated or foreign safetensors file": b"\x40\0\0\0\0\0\0\0{}",
        "truncated or damaged PyTorch file": b"PK\x03\x04" + bytes(100),
        "damaged, or holds objects other than tensors": b"\x80\x02garbage",
    }
    for message, damaged in cases.items():
        (tmp_path / "bad").write_bytes(damaged)
        assert message in refuse(capsys, tmp_path / "bad", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    assert "no such file or folder" in refuse(capsys, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "no checkpoint in this folder" in refuse(capsys, tmp_path / "empty", tmp_path / "out")
    (tmp_path / "streaming_train_state_4800").write_bytes(content)
    assert "2 checkpoints, name one" in refuse(capsys, tmp_path, tmp_path / "out")


class Evil:
    """Pickles to a call of `print`."""

    def __reduce__(self):
        return print, ("unpickled!",)


def test_pytorch_files_are_not_unpickled(tmp_path, capsys, weights):
    torch.save({"x": Evil()}, tmp_path / "pytorch_model.bin")
    assert "objects other than tensors, which are never loaded" in refuse(capsys, tmp_path, tmp_path / "out")
    torch.save({"state_dict": weights[0]}, tmp_path / "pytorch_model.bin")
    assert "not a state_dict" in refuse(capsys, tmp_path, tmp_path / "out")
    torch.save({"x": torch.ones(2, dtype=torch.int8)}, tmp_path / "pytorch_model.bin")
    assert "x has dtype torch.int8; valid dtypes: float16" in refuse(capsys, tmp_path, tmp_path / "out")


def test_community_folders_that_fit_no_model(tmp_path, capsys, weights):
    state, _ = weights
    save_safetensors(tmp_path, state | {"extra": torch.ones(1)})
    assert "unexpected parameter extra: the custom linear model has none" in refuse(capsys, tmp_path, tmp_path / "out")
    save_safetensors(tmp_path, state | {"model.norm.weight": torch.ones(2, dtype=torch.int8)})
    assert "model.norm.weight has dtype I8" in refuse(capsys, tmp_path, tmp_path / "out")
    save_safetensors(tmp_path, state)
    (tmp_path / "config.json").write_text('{"mini_batch_size": 64}')
    assert "config.json says mini_batch_size=64, the weights say 16" in refuse(capsys, tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text("{")
    assert "config.json: not JSON" in refuse(capsys, tmp_path, tmp_path / "out")
    save_file({"model.norm.weight": torch.ones(16)}, tmp_path / "model-2.safetensors")
    (tmp_path / "config.json").unlink()
    assert "parameter model.norm.weight occurs in two files" in refuse(capsys, tmp_path, tmp_path / "out")
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    for number in range(2):
        torch.save(state, tmp_path / f"pytorch_model-{number}.bin")
    assert "occurs in two files" in refuse(capsys, tmp_path, tmp_path / "out")


def test_unknown_dtype(tmp_path):
    with pytest.raises(ValueError, match="dtype='int8'; valid choices: 'keep', 'float32', 'bfloat16'"):
        convert(tmp_path, tmp_path / "out", dtype="int8")
