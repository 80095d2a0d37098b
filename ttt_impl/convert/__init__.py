"""Checkpoint import: published JAX files and community PyTorch conversions, to safetensors and config.json."""

from ttt_impl.convert.errors import CheckpointError
from ttt_impl.convert.result import Conversion
from ttt_impl.convert.streaming import read_streaming_checkpoint
from ttt_impl.convert.write import convert

__all__ = ["CheckpointError", "Conversion", "convert", "read_streaming_checkpoint"]
