"""A checkpoint and a configuration that do not fit each other, told in one line.

Left alone, a missing tensor is initialised at random and the model loads, which for a gate or a convolution gives a
model that runs and is wrong. Here nothing may be missing, left over or of another shape.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from ttt_impl.configuration import TTTConfig

Mismatch = tuple[str, Iterable[int], Iterable[int]]
_BACKBONE = {
    "g_proj": "use_gate",
    "k_proj": "share_qk",
    "conv_q": "share_qk",
    "conv_k": "share_qk",
    ".conv.": "pre_conv",
}


def misfit(
    config: TTTConfig, missing: Collection[str], unexpected: Collection[str], mismatched: Iterable[Mismatch]
) -> str | None:
    """One line that says why the checkpoint does not fit, None if it does."""
    different = sorted((key, tuple(theirs), tuple(ours)) for key, theirs, ours in mismatched)
    shapes = {key.rsplit(".", 1)[-1]: theirs for key, theirs, _ in different}
    if "learnable_token_idx" in shapes:
        size = shapes["learnable_token_idx"][0]
        return f"mini_batch_size={config.mini_batch_size}, but the checkpoint has {size}; valid choices: {size}"
    if any(key.endswith(".W2") for key in (*missing, *unexpected)):
        theirs = "linear" if config.ttt_layer_type == "mlp" else "mlp"
        return f"ttt_layer_type={config.ttt_layer_type!r}, but the checkpoint has {theirs!r}; valid choices: {theirs!r}"
    for name in ("W1", "ttt_norm_weight"):
        if name in shapes:
            heads, width = shapes[name][:2]
            return (
                f"num_attention_heads={config.num_attention_heads} of width {config.head_dim}, but the checkpoint has "
                f"{heads} of width {width}; valid choices: num_attention_heads={heads}, hidden_size={heads * width}"
            )
    for key, theirs_shape, ours_shape in different:
        return f"{key} has shape {theirs_shape} in the checkpoint and {ours_shape} by the configuration"
    for keys, verb in ((missing, "lacks"), (unexpected, "has")):
        for key in sorted(keys):
            option = next((o for part, o in _BACKBONE.items() if part in key), None)
            hint = "" if option is None else f"; valid choices: {option}={not getattr(config, option)}"
            return f"the checkpoint {verb} {key}, against the configuration ({len(keys)} tensors in all){hint}"
    return None


def misfit_of_state(config: TTTConfig, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str | None:
    """`misfit` of two state dicts."""
    mismatched = [
        (k, theirs[k].shape, ours[k].shape) for k in ours.keys() & theirs.keys() if ours[k].shape != theirs[k].shape
    ]
    return misfit(config, ours.keys() - theirs.keys(), theirs.keys() - ours.keys(), mismatched)


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep transformers' table of missing and misfitting tensors from the log; one line says it instead."""
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
