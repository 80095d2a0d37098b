"""One small model's weights, made once."""

import pytest
import torch

from tests.ttt_impl.convert.samples import CONFIG, HEAD
from ttt_impl import TTTConfig, TTTForCausalLM


@pytest.fixture(scope="session")
def weights():
    """A state_dict with the official names, as community conversions hold it, and its configuration."""
    torch.manual_seed(0)
    model = TTTForCausalLM(TTTConfig(**CONFIG))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {name: value.detach().clone() for name, value in model.state_dict().items() if name != HEAD}
    return state, model.config.to_diff_dict()
