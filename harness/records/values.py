"""What every measurement's values have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class Values:
    """Base of the measured values; `kind` names the measurement in the file."""

    kind: ClassVar[str]
