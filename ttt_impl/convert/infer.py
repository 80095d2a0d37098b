"""The configuration that a set of weights implies, and the check that every weight fits it.

Official files come without a readable configuration (theirs is pickled), but the shapes say nearly all: the
learner from the names of its inner weights, sizes from the embedding and the first layer, the backbone from the
presence of gate, shared projection and convolutions, the mini-batch from `learnable_token_idx`. What no weight
tells is the inner learning rate, which follows the learner (1.0 linear, 0.1 mlp: paper, App. C). A config.json,
where there is one, adds what weights cannot say, and must agree with them on the rest.
"""

import re
from typing import Any

from ttt_impl.configuration import BASE_LEARNING_RATE, SIZES, TTTConfig
from ttt_impl.convert.errors import CheckpointError
from ttt_impl.convert.flax_array import Shape

_EMBEDDING = "model.embed_tokens.weight"
_FIRST = "model.layers.0."
_BLOCK = f"{_FIRST}seq_modeling_block."
_LEARNERS = {"linear": {"W1", "b1"}, "mlp": {"W1", "b1", "W2", "b2"}}

# weight -> (configuration field, axis that holds its value)
_SIZED_BY = (
    (_EMBEDDING, "vocab_size", 0),
    (_EMBEDDING, "hidden_size", 1),
    (f"{_FIRST}mlp.gate_proj.weight", "intermediate_size", 0),
    (f"{_BLOCK}W1", "num_attention_heads", 0),
    (f"{_BLOCK}learnable_token_idx", "mini_batch_size", 0),
    (f"{_FIRST}conv.conv.weight", "conv_kernel", 2),
    (f"{_BLOCK}conv_q.weight", "conv_kernel", 2),
)


def _learner(shapes: dict[str, Shape]) -> str:
    """Tell the learner by the inner weights of layer 0."""
    found = {
        name.removeprefix(_BLOCK)
        for name in shapes
        if name.startswith((f"{_BLOCK}W", f"{_BLOCK}b")) and name.removeprefix(_BLOCK)[1:].isdigit()
    }
    for learner, weights in _LEARNERS.items():
        if found == weights:
            return learner
    known = "; ".join(f"{learner} ({', '.join(sorted(weights))})" for learner, weights in _LEARNERS.items())
    raise CheckpointError(f"unknown learner: inner weights of layer 0 are {sorted(found) or 'absent'}; known: {known}")


def infer_config(shapes: dict[str, Shape], declared: dict[str, Any]) -> TTTConfig:
    """Build the configuration from shapes (official PyTorch names, without a tied lm_head) and config.json."""
    if _EMBEDDING not in shapes:
        raise CheckpointError(f"missing parameter {_EMBEDDING}: not a TTT language model")
    layers = {int(found[1]) for name in shapes if (found := re.match(r"model\.layers\.(\d+)\.", name))}
    if absent := set(range(len(layers))) - layers:
        raise CheckpointError(f"missing layer {min(absent)}: the file has layers up to {max(layers)}")
    learner = _learner(shapes)
    trained_with: dict[str, Any] = {"ttt_base_lr": BASE_LEARNING_RATE[learner]}
    fields: dict[str, Any] = {
        "num_hidden_layers": len(layers),
        "ttt_layer_type": learner,
        "use_gate": f"{_BLOCK}g_proj.weight" in shapes,
        "share_qk": f"{_BLOCK}k_proj.weight" not in shapes,
        "pre_conv": f"{_FIRST}conv.conv.weight" in shapes,
        "tie_word_embeddings": "lm_head.weight" not in shapes,
    }
    for weight, name, axis in _SIZED_BY:
        if len(shapes.get(weight, ())) > axis:
            fields[name] = shapes[weight][axis]
    for name, value in fields.items():
        if declared.get(name, value) != value:
            raise CheckpointError(f"config.json says {name}={declared[name]!r}, the weights say {value!r}")
    try:
        known = {name: declared[name] for name in TTTConfig.__annotations__ if name in declared}
        return TTTConfig(**(trained_with | known | fields))
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def size_name(config: TTTConfig) -> str:
    """Name the paper's size with these dimensions, or 'custom'."""
    for name, sizes in SIZES.items():
        if all(getattr(config, field) == value for field, value in sizes.items()):
            return name
    return "custom"


def check_shapes(found: dict[str, Shape], expected: dict[str, Shape], label: str) -> None:
    """Raise one line for the first name or shape that differs from the model's."""
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"missing parameter {missing[0]}{_more(missing)}: the {label} model needs it")
    if unexpected := sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"unexpected parameter {unexpected[0]}{_more(unexpected)}: the {label} model has none")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"wrong shape: {name} is {list(found[name])} in the file, {list(shape)} in the {label} model"
            )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
