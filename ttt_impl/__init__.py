"""Test-Time Training layers (arXiv 2407.04620) as a library of its own.

Importing it registers model type "ttt" with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from ttt_impl.cache import TTTCache
from ttt_impl.configuration import TTTConfig
from ttt_impl.learner import Inputs, Learner
from ttt_impl.model import TTTForCausalLM, TTTModel
from ttt_impl.ops import ttt_linear, ttt_mlp

AutoConfig.register("ttt", TTTConfig, exist_ok=True)
AutoModel.register(TTTConfig, TTTModel, exist_ok=True)
AutoModelForCausalLM.register(TTTConfig, TTTForCausalLM, exist_ok=True)

__all__ = ["Inputs", "Learner", "TTTCache", "TTTConfig", "TTTForCausalLM", "TTTModel", "ttt_linear", "ttt_mlp"]
