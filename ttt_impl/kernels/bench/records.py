"""What a run leaves: one JSON object a line, each with its kind; raw seconds, and where they came from."""

import dataclasses
import json
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Provenance:
    """Where the rows after it come from."""

    kind: ClassVar[str] = "provenance"
    device: str
    driver: str
    capability: str
    torch: str
    cuda: str
    python: str
    commit: str
    time: str
    version: int = 1


@dataclass(frozen=True)
class Ceiling:
    """What the device was measured to do in this run."""

    kind: ClassVar[str] = "ceiling"
    copy_bytes_per_second: float
    product_flops_per_second: float


@dataclass(frozen=True)
class Check:
    """One error of a kernel beside its bound; `error` None and a reason where it could not run."""

    kind: ClassVar[str] = "check"
    kernel: str
    width: int
    length: int
    what: str
    error: float | None
    bound: float | None
    reason: str = ""


@dataclass(frozen=True)
class Timing:
    """A candidate's raw times of a piece of work, or why there are none."""

    kind: ClassVar[str] = "timing"
    learner: str
    task: str
    batch: int
    length: int
    heads: int
    width: int
    candidate: str
    tokens: int
    floors: dict[str, float | None]
    """Seconds: memory, tensor, latency."""
    seconds: list[float] = field(default_factory=list)
    reason: str = ""


Record = Provenance | Ceiling | Check | Timing
KINDS: dict[str, type[Record]] = {kind.kind: kind for kind in (Provenance, Ceiling, Check, Timing)}


def write(path: Path, records: Iterable[Record]) -> None:
    """Append."""
    with path.open("a") as file:
        for record in records:
            file.write(json.dumps({"kind": record.kind, **dataclasses.asdict(record)}) + "\n")


def read(path: Path) -> list[Record]:
    """All records of a file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [KINDS[row.pop("kind")](**row) for row in rows]


def provenance(device: torch.device) -> Provenance:
    """Of this machine, now."""
    return Provenance(
        device=torch.cuda.get_device_name(device),
        driver=_said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        capability=".".join(map(str, torch.cuda.get_device_capability(device))),
        torch=torch.__version__,
        cuda=str(torch.version.cuda),
        python=platform.python_version(),
        commit=_said(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _said(command: list[str]) -> str:
    """The first line that a command prints; 'unknown' where it cannot."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return lines[0]
