"""`python -m ttt_impl.convert SRC DST`: convert a checkpoint, say what came out, or why nothing did."""

import argparse
import sys
from collections.abc import Sequence

from ttt_impl.convert.errors import CheckpointError
from ttt_impl.convert.result import Conversion
from ttt_impl.convert.write import OUTPUT_DTYPES, convert


def _summary(result: Conversion, dst: str) -> str:
    """Say in a few lines what was converted and what to compare it with."""
    step = "" if result.step is None else f", step {result.step}"
    lines = [
        f"source  {result.source} ({result.source_format}, {result.source_bytes:,} bytes{step})",
        f"model   TTT {result.size}, learner {result.learner}, {result.backbone} backbone",
        f"size    {result.parameters:,} parameters, {result.weight_bytes:,} bytes in {result.dtype}: as expected",
        *(f"sha256  {digest}  {name}" for name, digest in result.sha256.items()),
        f"wrote   {dst}",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit code 2 and one line on standard error for anything that cannot be converted."""
    parser = argparse.ArgumentParser(
        prog="python -m ttt_impl.convert",
        description="Convert a TTT checkpoint to a folder that from_pretrained reads.",
    )
    parser.add_argument("src", metavar="SRC", help="streaming_train_state, safetensors or PyTorch file, or its folder")
    parser.add_argument("dst", metavar="DST", help="folder to write; must be new or empty")
    parser.add_argument("--dtype", choices=tuple(OUTPUT_DTYPES), default="keep", help="dtype of the result")
    arguments = parser.parse_args(argv)
    try:
        result = convert(arguments.src, arguments.dst, dtype=arguments.dtype, progress=True)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    print(_summary(result, arguments.dst))
    return 0


if __name__ == "__main__":
    sys.exit(main())
