"""Any causal language model that transformers can load: by hub name, from a local folder, or out of a GGUF file.

A pretrained model brings its own tokenizer and its own limit of context. It reads the same bytes as every other
model: the text is cut into the tokenizer's tokens, and each token keeps the number of bytes that it stands for, so
that losses compare per byte. Nothing is added in front (no BOS), and nothing beyond the limit is asked of it. Weights
come from safetensors or GGUF alone, and code that lies beside the weights runs only where the user says so by name.
"""

from __future__ import annotations

import codecs
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from baselines.config import FamilyConfig, SizeConfig
from baselines.encoding import bytes_of_tokens
from baselines.interface import Encoded, Mode, SequenceModel, State

CACHES = ("past_key_values", "cache_params")
"""What transformers' models call their state; the second kind takes one token at a time once it has begun."""
LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass
class Config(FamilyConfig):
    """Where the model lies; its sizes are its own."""

    family: str = "pretrained"
    path: str | None = None
    """A folder that `save_pretrained` wrote, a `.gguf` file, or a hub name of the form owner/name."""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.path and self.checkpoint not in (None, self.path):
            raise ValueError(f"pretrained: path={self.path} and checkpoint={self.checkpoint} differ: give path alone")
        self.checkpoint = self.path or self.checkpoint

    def candidates(self, size: SizeConfig) -> Iterable[Self]:
        """There are none: nothing is trained here."""
        raise ValueError(
            "family pretrained: path is missing; it loads a model and trains none:"
            " give path=FOLDER, path=FILE.gguf or path=OWNER/NAME"
        )


class Pretrained(SequenceModel):
    """A causal language model of transformers, as its makers left it."""

    Config = Config
    trains = False
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(model)
        self.tokenizer = tokenizer
        known = inspect.signature(model.forward).parameters
        self._cache = next((name for name in CACHES if name in known), CACHES[0])
        self._keeps = "logits_to_keep" in known
        self.continues = self._cache == CACHES[0]

    @classmethod
    def build(cls, config: Any, vocab_size: int) -> Self:
        """Not possible: see `Config.candidates`."""
        raise ValueError("family pretrained loads a model and builds none")

    @classmethod
    def load(cls, config: FamilyConfig) -> Self:
        """The model and its tokenizer, float32, in evaluation mode; ValueError, in one line, if it cannot be had."""
        assert isinstance(config, Config)
        source = Path(str(config.checkpoint))
        options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
        folder, weights = str(source), {"use_safetensors": True}
        if source.suffix == ".gguf":
            folder, weights = str(source.parent), {}
            options |= {"gguf_file": source.name}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **weights, **options)
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"pretrained: {source}: {_reason(error)}") from None
        if not tokenizer.is_fast:
            raise ValueError(f"pretrained: {source}: its tokenizer cannot say which bytes a token stands for")
        return cls(model.eval(), tokenizer)

    @property
    def kernel_path(self) -> str:
        """The attention that transformers runs: `sdpa`, `eager` …"""
        return str(self.model.config._attn_implementation)

    @property
    def context_limit(self) -> int | None:
        """Positions that the model has learned, by its own config; None where it names no limit."""
        config = self.model.config
        return next((int(value) for name in LIMITS if (value := getattr(config, name, None))), None)

    def encode(self, text: bytes) -> Encoded:
        """Tokens of `text`, without its last character if that is cut; a byte belongs to the token that completes it.

        Bytes that no token shows, such as white space that the tokenizer drops, count with the token after them.
        """
        try:
            characters = codecs.getincrementaldecoder("utf-8")().decode(text)
        except UnicodeDecodeError as error:
            raise ValueError(f"a model with a tokenizer reads UTF-8, and this text is none: {error.reason}") from None
        found = self.tokenizer(characters, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = np.array([end for _, end in found["offset_mapping"]], dtype=np.int64)
        return Encoded(np.array(found["input_ids"], dtype=np.int64), bytes_of_tokens(characters, ends))

    def prefill(self, input_ids: Tensor, state: State | None = None, logits_to_keep: int = 1) -> tuple[Tensor, State]:
        """As in `SequenceModel`, under the names that this model has for its state."""
        options = {"logits_to_keep": logits_to_keep} if self._keeps else {}
        out = self.model(input_ids, use_cache=True, **{self._cache: state}, **options)
        return out.logits[:, -logits_to_keep:], out[self._cache]

    def flops(self, length: int, mode: Mode) -> int:
        """An estimate for any dense model: 2 a weight of every matrix, and 4 H for each pair of query and key.

        As for the Transformer; recurrences are not counted, and windows and skipped layers count as full attention.
        """
        config, head = self.model.config, self.model.get_output_embeddings().weight
        modules = (module for module in self.model.modules() if not isinstance(module, nn.Embedding))
        weights = (weight for module in modules for weight in module.parameters(recurse=False))
        token = 2 * sum(weight.numel() for weight in weights if weight.ndim == 2 and weight is not head)
        heads = getattr(config, "num_attention_heads", 0)
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // max(1, heads))
        pair, last = 4 * config.num_hidden_layers * width, 2 * head.numel()
        forward = length * token + length * (length + 1) // 2 * pair
        return {
            "train": 3 * (forward + length * last),
            "prefill": forward + last,
            "step": token + (length + 1) * pair + last,
        }[mode]


def _reason(error: Exception) -> str:
    """The first line of what transformers says, or what to do about it."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        return "it needs code of its own, which runs only with trust_remote_code=true"
    if isinstance(error, ImportError) and "gguf" in text.lower():
        return "reading GGUF needs a package: pip install 'ttt-bench[gguf]'"
    return text.splitlines()[0] if text else type(error).__name__
