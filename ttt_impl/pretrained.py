"""What every TTT model has as a citizen of transformers: initialisation, loading, gradient checkpointing."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from ttt_impl.backbone import RMSNorm
from ttt_impl.configuration import TTTConfig
from ttt_impl.layer import TTTLayer
from ttt_impl.loading import misfit, misfit_of_state, without_load_report


class TTTPreTrainedModel(PreTrainedModel):
    """What both models share: configuration, initialisation, gradient checkpointing."""

    config: TTTConfig
    config_class = TTTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.initializer_range)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers, but nothing may be missing, left over or of another shape.

        `ignore_mismatched_sizes=True` asks for transformers' own leniency.
        """
        load: Any = super().from_pretrained
        if kwargs.get("ignore_mismatched_sizes"):
            return load(*args, **kwargs)
        wanted = kwargs.pop("output_loading_info", False)
        with without_load_report():
            model, info = load(*args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs)
        unexpected = [key for key in info["unexpected_keys"] if "layers." in key]
        if (reason := misfit(model.config, info["missing_keys"], unexpected, info["mismatched_keys"])) is not None:
            raise ValueError(f"{model.name_or_path}: {reason}")
        return (model, info) if wanted else model

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in PyTorch, with one clear line when the tensors do not fit."""
        reason = misfit_of_state(self.config, self.state_dict(), state_dict) if strict else None
        if reason is not None:
            raise ValueError(f"state_dict: {reason}")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


@torch.no_grad()
def initialise(module: nn.Module, std: float) -> None:
    """Normal(0, std) for matrices, W0 and the learning-rate gate; PyTorch's own for convolutions."""
    if isinstance(module, nn.Linear | nn.Embedding):
        init.normal_(module.weight, mean=0.0, std=std)
    elif isinstance(module, nn.Conv1d):
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(module.weight.shape[-1])
        if module.bias is not None:
            init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, RMSNorm):
        init.ones_(module.weight)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, TTTLayer):
        for name, parameter in module.named_parameters(recurse=False):
            if name == "ttt_norm_weight":
                init.ones_(parameter)
            elif name.startswith("W") or name == "learnable_ttt_lr_weight":
                init.normal_(parameter, mean=0.0, std=std)
            else:
                init.zeros_(parameter)
