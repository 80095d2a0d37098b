"""What a conversion leaves behind to be trusted by: sizes read back from disk, a checksum, and where it came from."""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from ttt_impl.convert.errors import CheckpointError

_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Conversion:
    """One conversion, kept as `conversion.json` beside the weights.

    `source` is folder/file (the first of several shards), `sha256` that of each weight file written.
    """

    source: str
    source_format: str
    source_bytes: int
    step: int | None
    size: str
    learner: str
    backbone: str
    dtype: str
    parameters: int
    weight_bytes: int
    sha256: dict[str, str]
    versions: dict[str, str]


def check_written(files: list[Path], parameters: int, weight_bytes: int) -> None:
    """Count parameters and bytes in the safetensors files on disk; raise unless they are the expected ones."""
    found_parameters, found_bytes = 0, 0
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found_parameters += sum(math.prod(tensor["shape"]) for tensor in header.values())
        found_bytes += path.stat().st_size - 8 - length
    if (found_parameters, found_bytes) != (parameters, weight_bytes):
        raise CheckpointError(
            f"size check failed: expected {parameters:,} parameters in {weight_bytes:,} bytes, "
            f"the disk holds {found_parameters:,} in {found_bytes:,}"
        )


def sha256(path: Path, progress: Progress) -> str:
    """Hash one file, block by block, under the given progress bar."""
    digest = hashlib.sha256()
    with progress.open(path, "rb", description=f"hash {path.name}") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def flush(folder: Path) -> None:
    """Force every file of the folder to disk, so that the rename that follows never shows empty files."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
