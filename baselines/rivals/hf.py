"""transformers' own Mamba and Llama, as their library runs them on this machine."""

from __future__ import annotations

import importlib.util

import transformers
from torch import Tensor

from baselines.interface import SequenceModel, State
from baselines.mamba import Mamba
from baselines.rivals.missing import NotInstalled
from baselines.transformer import Transformer


class TransformersMamba(Mamba):
    """transformers' Mamba: its loop over the sequence, or the scan of the package mambapy."""

    as_it_came = True

    @property
    def kernel_path(self) -> str:
        """Which of its two scans transformers was told to use."""
        return "transformers-mambapy" if self.model.config.use_mambapy else "transformers"


class TransformersLlama(Transformer):
    """transformers' Llama with its own norms and its own growing cache."""

    as_it_came = True

    def __init__(self, model: transformers.LlamaForCausalLM) -> None:
        SequenceModel.__init__(self, model)

    def prefill(self, input_ids: Tensor, state: State | None = None, logits_to_keep: int = 1) -> tuple[Tensor, State]:
        """As in `SequenceModel`, whatever our Transformer does instead."""
        return SequenceModel.prefill(self, input_ids, state, logits_to_keep)

    def step(self, input_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """As in `SequenceModel`."""
        return SequenceModel.step(self, input_ids, state)


def transformers_mamba(ours: SequenceModel, mambapy: bool = False) -> TransformersMamba:
    """transformers' Mamba with the weights of `ours`; NotInstalled if it is to use mambapy and that is missing."""
    if mambapy and importlib.util.find_spec("mambapy") is None:
        raise NotInstalled("mambapy is not installed: pip install mambapy")
    config = transformers.MambaConfig(**ours.model.config.to_dict() | {"use_mambapy": mambapy})
    model = transformers.MambaForCausalLM(config)
    model.load_state_dict(ours.model.state_dict())
    return TransformersMamba(model.eval())


def transformers_llama(ours: SequenceModel) -> TransformersLlama:
    """transformers' Llama with the weights of `ours`."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**ours.model.config.to_dict()))
    model.load_state_dict(ours.model.state_dict())
    return TransformersLlama(model.eval())
