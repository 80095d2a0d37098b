"""The official PyTorch code of TTT, from a copy of its file that the user has (`ttt.py` of ttt-lm-pytorch).

The file was written for an older transformers. Recent ones want the tied head named by a mapping, `generate` from a
class of its own, and no look at `use_return_dict`. A subclass gives them that; the file stays as it is.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import partialmethod
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from baselines.interface import SequenceModel, State
from baselines.rivals.missing import NotInstalled
from baselines.ttt import TTT

_MODULE = "official_ttt"
_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
    "tie_word_embeddings", "rope_theta", "use_gate", "share_qk", "ttt_layer_type", "ttt_base_lr", "mini_batch_size",
    "pre_conv", "conv_kernel",
)  # fmt: skip


class OfficialTTT(TTT):
    """The official model behind the common interface; `model` is of a class of the user's file."""

    as_it_came = True
    model: Any

    @property
    def kernel_path(self) -> str:
        """There is one: PyTorch, mini-batch by mini-batch."""
        return "official"

    def prefill(self, input_ids: Tensor, state: State | None = None, logits_to_keep: int = 1) -> tuple[Tensor, State]:
        """As in `SequenceModel`; after the first call one token at a time (the official cache takes no more)."""
        out = self.model(input_ids, cache_params=state, use_cache=True)
        return out.logits[:, -logits_to_keep:], out.cache_params


def official_ttt(ours: SequenceModel, path: Path | None) -> OfficialTTT:
    """The official model with the weights of `ours`, a TTT; NotInstalled without a file, ValueError for another one."""
    if path is None:
        raise NotInstalled("no official code: give your copy of ttt.py of ttt-lm-pytorch, --official PATH")
    module = _load(path)
    config = module.TTTConfig(**{name: getattr(ours.model.config, name) for name in _SHARED})
    shims = {
        "_tied_weights_keys": {"lm_head.weight": "model.embed_tokens.weight"},
        "forward": partialmethod(module.TTTForCausalLM.forward, return_dict=True),
    }
    model_class = type("TTTForCausalLM", (module.TTTForCausalLM, GenerationMixin), shims)
    model: torch.nn.Module = model_class(config)
    model.load_state_dict(ours.model.state_dict())
    return OfficialTTT(model.eval())  # type: ignore[arg-type]


def _load(path: Path) -> ModuleType:
    """The module in the file at `path`."""
    if not path.is_file():
        raise ValueError(f"--official {path}: no such file")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--official {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    spec.loader.exec_module(module)
    if not hasattr(module, "TTTForCausalLM"):
        raise ValueError(f"--official {path}: defines no TTTForCausalLM; it should be ttt.py of ttt-lm-pytorch")
    return module
