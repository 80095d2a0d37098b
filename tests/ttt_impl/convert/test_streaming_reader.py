"""The reader of JAX streaming checkpoints against files made by the msgpack library."""

import io

import msgpack
import pytest
import torch

from tests.ttt_impl.convert.streaming_writer import (
    array,
    chunked,
    hole,
    model_shapes,
    random_params,
    record,
    train_state,
    write,
    write_holes,
)
from ttt_impl.convert import CheckpointError, read_streaming_checkpoint
from ttt_impl.convert.streaming import index_streaming_checkpoint

SMALL = model_shapes("mlp", vocab=11, width=8, heads=2, inter=12, layers=1)


class CountingFile(io.BufferedReader):
    """A file that counts the bytes that are read from it, seeks apart."""

    count = 0

    def read(self, size=-1, /):
        data = super().read(size)
        self.count += len(data)
        return data

    def readinto(self, buffer, /):
        size = super().readinto(buffer)
        self.count += size
        return size


def read_bytes(tmp_path, content):
    (tmp_path / "state").write_bytes(content)
    return dict(read_streaming_checkpoint(tmp_path / "state"))


def test_bytes_are_those_of_the_release(tmp_path):
    """The first bytes of a file that ttt-lm-jax @ 6f529b1 wrote with flax 0.7.0 and msgpack: step 0, then one bias."""
    head = bytes.fromhex(
        "9291a473746570c40100"
        "9298a6706172616d73a6706172616d73a56d6f64656ca168a130a4636f6e76a5636f6e7631a462696173"
        "c451c74e01939120a862666c6f61743136c440"
    )
    elements = torch.arange(32).to(torch.bfloat16)
    path = ("params", "params", "model", "h", "0", "conv", "conv1", "bias")
    assert record(("step",), 0) + record(path, array(elements)) == head + elements.view(torch.uint8).numpy().tobytes()
    found = read_bytes(tmp_path, head + elements.view(torch.uint8).numpy().tobytes())
    assert list(found) == ["model/h/0/conv/conv1/bias"]
    assert torch.equal(found["model/h/0/conv/conv1/bias"], elements)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_dtype_and_rank_survives(tmp_path, dtype):
    values = {"a": torch.tensor(1.5), "b": torch.randn(300), "c": torch.randn(3, 70, 5), "d": torch.empty(0, 4)}
    values = {name: value.to(dtype) for name, value in values.items()}
    found = read_bytes(tmp_path, b"".join(record(("model", name), array(value)) for name, value in values.items()))
    assert list(found) == [f"model/{name}" for name in values]
    for name, value in values.items():
        assert found[f"model/{name}"].dtype == dtype
        assert torch.equal(found[f"model/{name}"], value)


def test_lengths_of_all_widths(tmp_path):
    """Payloads around 2**8 and 2**16 bytes use bin and ext headers of one, two and four bytes."""
    values = {str(count): torch.randn(count) for count in (1, 2, 60, 64, 16380, 16384, 20000)}
    found = read_bytes(tmp_path, b"".join(record(("model", name), array(value)) for name, value in values.items()))
    assert all(torch.equal(found[f"model/{name}"], value) for name, value in values.items())


def test_chunked_arrays_are_joined(tmp_path):
    value = torch.randn(5, 7).to(torch.bfloat16)
    found = read_bytes(tmp_path, record(("params", "params", "model", "x"), chunked(value, elements=12)))
    assert torch.equal(found["model/x"], value)


@pytest.mark.parametrize("step", [7, array(torch.tensor(7, dtype=torch.int32)), array(torch.tensor(7), code=3)])
def test_step_in_each_spelling(step):
    content = record(("step",), step)
    assert index_streaming_checkpoint(io.BytesIO(content), len(content)).step == 7


def test_optimizer_state_is_not_read(tmp_path):
    params = random_params(SMALL)
    write(tmp_path / "state", params)
    size = (tmp_path / "state").stat().st_size
    with CountingFile(io.FileIO(tmp_path / "state")) as file:
        index = index_streaming_checkpoint(file, size)
        header_bytes = file.count
    assert len(index.entries) == len(params)
    weights = sum(value.nbytes for value in params.values())
    assert size > 3 * weights
    assert header_bytes < size - 3 * weights, "an element was read while indexing"


def test_moments_larger_than_memory_cost_nothing(tmp_path):
    """24 GiB of moments, as holes: reading them would take minutes, and more memory than the machine may have."""
    path = tmp_path / "state"
    with path.open("wb") as file:
        for number in range(8):
            headers, size = hole(("opt_state", "1", "0", "mu", str(number)), (3 * 2**29,))
            file.write(headers)
            file.seek(size, 1)
        file.write(record(("params", "params", "model", "x"), array(torch.ones(3))))
    assert path.stat().st_size > 24 * 2**30
    with CountingFile(io.FileIO(path)) as file:
        index = index_streaming_checkpoint(file, path.stat().st_size)
        assert file.count < 2000
    assert index.entries["model/x"].segments[0][0] > 24 * 2**30
    assert dict(read_streaming_checkpoint(path))["model/x"].tolist() == [1, 1, 1]


def test_one_tensor_at_a_time(tmp_path, monkeypatch):
    """After the first tensor is handed out, no element of the second has been read."""
    asked = []

    def note(file, entry):
        asked.append(entry.name)
        return torch.zeros(entry.shape)

    monkeypatch.setattr("ttt_impl.convert.streaming.read_tensor", note)
    stream = read_streaming_checkpoint(write(tmp_path / "state", random_params(SMALL)))
    first, _ = next(stream)
    assert asked == [first]


def test_every_truncation_is_noticed(tmp_path):
    """A cut inside a record is an error; a cut between records leaves the parameters before it."""
    records = list(train_state({("model", "x"): torch.ones(3), ("model", "y"): torch.ones(2, 2)}))
    content, borders, position = b"".join(records), set(), 0
    for piece in records:
        borders.add(position)
        position += len(piece)
    for cut in range(len(content)):
        if cut in borders:
            index_streaming_checkpoint(io.BytesIO(content[:cut]), cut)
        else:
            with pytest.raises(CheckpointError, match="truncated"):
                index_streaming_checkpoint(io.BytesIO(content[:cut]), cut)


def test_damage_never_escapes_as_another_error():
    """Every single-byte change either still reads as a checkpoint or is refused as one."""
    content = b"".join(train_state({("model", "x"): torch.ones(3, dtype=torch.bfloat16)}))
    messages = []
    for place in range(len(content)):
        for value in (0x00, 0x7F, 0x81, 0x93, 0xA1, 0xC0, 0xC3, 0xC6, 0xC9, 0xD4, 0xD9, 0xDD, 0xDF, 0xFF):
            damaged = content[:place] + bytes([value]) + content[place + 1 :]
            try:
                index_streaming_checkpoint(io.BytesIO(damaged), len(damaged))
            except CheckpointError as error:
                messages.append(str(error))
    assert len(messages) > len(content)
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (msgpack.packb({"params": 1}), "foreign msgpack: map at byte 0 where a checkpoint has array"),
        (msgpack.packb([1, 2, 3]), r"foreign msgpack: no \(key, value\) pair"),
        (msgpack.packb((("model", 3), b"")), "foreign msgpack: int at byte 8 where a checkpoint has str"),
        (msgpack.packb((("model", "x"), "text")), "foreign msgpack: str at byte 10 where a checkpoint has bin"),
        (b"\xc1" + bytes(20), "foreign msgpack: tag 0xc1 at byte 0"),
        (b"\x92\x91\xdb\x7f\xff\xff\xff", "a name of 2147483647 bytes"),
        (b"\x92\x91\xa2\xff\xfe\xc4\x00", "the name at byte 2 is not UTF-8"),
        (record(("model", "x"), "text"), "parameter model/x is a msgpack str, not an array"),
        (record(("model", "x"), array(torch.ones(2, dtype=torch.int8))), "parameter model/x has dtype 'int8'; valid"),
        (record(("model", "x"), array(torch.ones(2), code=2)), "the ext of type 2 before byte .* is no flax array"),
        (record(("model", "x"), chunked(torch.ones(2), 1) | {"more": {}}), "key 'more'"),
        (2 * record(("model", "x"), array(torch.ones(2))), "parameter model/x occurs twice"),
        (record(("step",), "text"), "where a checkpoint has a number"),
    ],
)
def test_foreign_content_gets_one_line(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_bytes(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_shape_must_account_for_every_byte(tmp_path):
    value = msgpack.ExtType(1, msgpack.packb(((2, 3), "float32", bytes(20)), use_bin_type=True))
    with pytest.raises(CheckpointError, match=r"model/x of shape \[2, 3\] needs 24 bytes, the file has 20"):
        read_bytes(tmp_path, record(("model", "x"), value))


def test_holes_are_valid_records(tmp_path):
    """The writer's own check: a hole of zeros reads as zeros."""
    path = write_holes(tmp_path / "state", {("model", "x"): (3, 4)})
    assert torch.equal(dict(read_streaming_checkpoint(path))["model/x"], torch.zeros(3, 4, dtype=torch.bfloat16))
