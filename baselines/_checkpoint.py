"""Loading trained weights, with the question first whether the folder holds that kind of model at all.

`from_pretrained` fills a model of the wrong type with random numbers and a warning; a comparison must stop instead.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import AutoConfig, PreTrainedModel

from baselines.config import FamilyConfig

M = TypeVar("M", bound=PreTrainedModel)


def load_checkpoint(config: FamilyConfig, model_class: type[M]) -> M:
    """The model in `config.checkpoint` as a `model_class`, float32, in evaluation mode; ValueError if it is another."""
    folder = str(config.checkpoint)
    try:
        found = AutoConfig.from_pretrained(folder).model_type
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {folder}: {str(error).splitlines()[0]}") from None
    assert model_class.config_class is not None
    wanted = model_class.config_class.model_type
    if found != wanted:
        raise ValueError(f"checkpoint {folder} holds a {found!r} model: family {config.family} loads {wanted!r} models")
    return model_class.from_pretrained(folder, dtype=torch.float32).eval()
