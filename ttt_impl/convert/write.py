"""From a source to a folder that `from_pretrained` reads, whole or not at all.

Every tensor is checked against the model itself, built without memory on the meta device. The folder is written under a
temporary name beside its destination, read back (bytes and parameters found against expected), hashed, flushed
and then renamed: a folder under its final name is a finished one.
"""

import importlib.metadata
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging as hf_logging

from ttt_impl import TTTConfig, TTTForCausalLM
from ttt_impl.convert.errors import CheckpointError
from ttt_impl.convert.infer import check_shapes, infer_config, size_name
from ttt_impl.convert.result import Conversion, check_written, flush, sha256
from ttt_impl.convert.sources import Source, open_source

OUTPUT_DTYPES = {"keep": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def convert(src: str | Path, dst: str | Path, *, dtype: str = "keep", progress: bool = False) -> Conversion:
    """Convert the checkpoint `src` into the new folder `dst`; `dtype` is 'keep', 'float32' or 'bfloat16'."""
    if dtype not in OUTPUT_DTYPES:
        raise ValueError(f"dtype={dtype!r}; valid choices: {', '.join(map(repr, OUTPUT_DTYPES))}")
    src, dst = Path(src), Path(dst)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise CheckpointError(f"{dst}: exists already and is not an empty folder")
    source = open_source(src)
    with source.handle:
        model = _matching_model(source)
        partial = dst.with_name(f".{dst.name}.{os.getpid()}.partial")
        try:
            partial.mkdir(parents=True)
            with _bar(progress) as bar:
                conversion = _fill(partial, source, model, OUTPUT_DTYPES[dtype], bar)
            flush(partial)
            os.replace(partial, dst)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return conversion


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    """Give a progress bar in bytes on standard error, or one that shows nothing; hush the bar of transformers."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), disable=not shown)
    theirs = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with bar if shown else nullcontext():
            yield bar
    finally:
        if theirs:
            hf_logging.enable_progress_bar()


def _matching_model(source: Source) -> TTTForCausalLM:
    """Build the model that the source's names and shapes imply, without memory, and check that all of them fit."""
    _drop_tied_head(source)
    config = infer_config(source.shapes, source.config)
    with torch.device("meta"):
        model = TTTForCausalLM(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del expected[_HEAD]
    check_shapes(source.shapes, expected, f"{size_name(config)} {config.ttt_layer_type}")
    return model


def _fill(folder: Path, source: Source, model: TTTForCausalLM, dtype: torch.dtype | None, bar: Progress) -> Conversion:
    """Write weights, configuration and conversion.json into `folder`."""
    config: TTTConfig = model.config
    state = _read(source, dtype, bar)
    weight_bytes = sum(tensor.nbytes for tensor in state.values())
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    if config.tie_word_embeddings:
        state[_HEAD] = state[_EMBEDDING]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (tokenizer := source.files[0].with_name(name)).is_file():
            shutil.copyfile(tokenizer, folder / name)

    parameters = sum(map(math.prod, source.shapes.values()))
    weights = sorted(folder.glob("*.safetensors"))
    check_written(weights, parameters, weight_bytes)
    conversion = Conversion(
        source="/".join(source.files[0].absolute().parts[-2:]),
        source_format=source.kind,
        source_bytes=source.bytes,
        step=source.step,
        size=size_name(config),
        learner=config.ttt_layer_type,
        backbone="mamba" if config.share_qk else "transformer",
        dtype="+".join(dtypes),
        parameters=parameters,
        weight_bytes=weight_bytes,
        sha256={path.name: sha256(path, bar) for path in weights},
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors")},
    )
    (folder / "conversion.json").write_text(json.dumps(asdict(conversion), indent=2) + "\n")
    return conversion


def _drop_tied_head(source: Source) -> None:
    """Forget an lm_head that only repeats the embedding, unless config.json says that they are two."""
    if _HEAD not in source.shapes or not source.config.get("tie_word_embeddings", True):
        return
    if source.shapes[_HEAD] == source.shapes.get(_EMBEDDING) and torch.equal(
        source.read(_HEAD), source.read(_EMBEDDING)
    ):
        del source.shapes[_HEAD]


def _read(source: Source, dtype: torch.dtype | None, bar: Progress) -> dict[str, torch.Tensor]:
    """Read all parameters under a bar in bytes."""
    sizes = {name: math.prod(shape) * source.dtypes[name].itemsize for name, shape in source.shapes.items()}
    task = bar.add_task("read", total=sum(sizes.values()))
    state = {}
    for name, size in sizes.items():
        tensor = source.read(name)
        state[name] = tensor if dtype is None else tensor.to(dtype)
        bar.advance(task, size)
    return state
