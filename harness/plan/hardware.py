"""What named processors can do at best, from their makers' data sheets, and how much of it a plan assumes."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """Dense FLOP/s by number format and bytes of memory of one accelerator.

    float32 is that of the CUDA cores: PyTorch takes the tensor cores' TF32 for it only where it is told to, and here
    nothing does.
    """

    name: str
    flops: dict[str, float]
    memory: int
    source: str


NAMED = {
    "a100": Hardware(
        "A100 80GB SXM", {"bfloat16": 312e12, "float32": 19.5e12}, 80 * GIB,
        "NVIDIA A100 Tensor Core GPU datasheet (2021)",
    ),
    "h100": Hardware(
        "H100 80GB SXM", {"bfloat16": 989.4e12, "float32": 66.9e12}, 80 * GIB,
        "NVIDIA H100 Tensor Core GPU Architecture whitepaper (2022), table of SXM5",
    ),
    "h200": Hardware(
        "H200 141GB SXM", {"bfloat16": 989.4e12, "float32": 66.9e12}, 141 * 10**9,
        "NVIDIA H200 Tensor Core GPU datasheet (2024); the processor is the H100's",
    ),
}  # fmt: skip
HERE = "here"
"""This machine, whose time is measured."""
UTILISATION = 0.35
"""Share of the peak that training is taken to reach where the user does not say: what large Transformers come to in
bfloat16. Small models, and recurrences whose chunks fill no tensor core, stay far below: give what you measured."""
