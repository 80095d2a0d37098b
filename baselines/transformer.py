"""The Transformer every newer model is measured against: Llama's blocks, through transformers.

RMSNorm before each layer, rotary positions, causal softmax attention, SwiGLU, no biases (Touvron et al., arXiv
2302.13971, section 2.2). Its state is every key and value so far; with `num_kv_heads` several query heads share them
(Ainslie et al., arXiv 2305.13245). Rotary positions
have no end: what happens beyond the training length is measured, not forbidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from baselines._attention import Attention
from baselines._checkpoint import load_checkpoint
from baselines._growing_cache import GrowingCache
from baselines._llama_attention import NAME, use_operators
from baselines._llama_step import llama_step
from baselines._precision import widen_norms
from baselines._swiglu import GatedMLP
from baselines._wanted import LastRows, wanting
from baselines.config import BlockConfig, FamilyConfig
from baselines.interface import Mode, SequenceModel, State


@dataclass
class Config(BlockConfig):
    """Options of the Transformer; its sizes are taken from `size` where they are None."""

    family: str = "transformer"
    rope_theta: float = 10_000.0
    tie_embeddings: bool = True
    num_kv_heads: int | None = None
    """Heads of keys and values; None: one for each query head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rope_theta <= 0:
            raise ValueError(f"transformer: rope_theta={self.rope_theta} must be positive")
        if self.num_kv_heads is not None and self.num_kv_heads < 1:
            raise ValueError(f"transformer: num_kv_heads={self.num_kv_heads} must be at least 1")
        if self.hidden_size and self.head_dim and self.heads % self.kv_heads:
            raise ValueError(f"transformer: num_kv_heads={self.kv_heads} does not divide the {self.heads} query heads")

    @property
    def heads(self) -> int:
        """Query heads."""
        assert self.hidden_size is not None
        assert self.head_dim is not None
        return self.hidden_size // self.head_dim

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.heads

    def parameters(self, vocab_size: int) -> int:
        """Embedding (twice if untied), then per layer the projections, SwiGLU and two norms; the last norm.

        Queries and output take H x H weights each, keys and values H for each of their own features.
        """
        assert self.hidden_size is not None
        assert self.num_layers is not None
        assert self.intermediate_size is not None
        width = self.hidden_size
        shared = 2 * width * self.kv_heads * (self.head_dim or 0)
        layer = 2 * width * width + shared + 3 * width * self.intermediate_size + 2 * width
        return (1 if self.tie_embeddings else 2) * vocab_size * width + self.num_layers * layer + width


class LastBlock(LlamaDecoderLayer):
    """transformers' block, for the tokens whose output its attention gives."""

    def forward(self, hidden_states: Tensor, **named: Any) -> Tensor:  # type: ignore[override]
        """[B, L, H] -> [B, wanted or L, H]."""
        mixed, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **named)
        hidden = hidden_states[:, -mixed.shape[1] :] + mixed
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Transformer(SequenceModel):
    """A Llama behind the common interface."""

    Config = Config
    Mixer = Attention

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__(model)
        widen_norms(model, LlamaRMSNorm)
        use_operators(model)
        for module in model.modules():
            if type(module) is LlamaMLP and model.config.hidden_act == "silu":
                module.__class__ = GatedMLP
        last = model.model.layers[-1]
        last.__class__, last.self_attn.o_proj.__class__ = LastBlock, LastRows

    @classmethod
    def build(cls, config: Any, vocab_size: int) -> Self:
        """A freshly initialised float32 model on the CPU from a complete config."""
        llama = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=2**20,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        return cls(LlamaForCausalLM(llama))

    @classmethod
    def load(cls, config: FamilyConfig) -> Self:
        """The trained model in `config.checkpoint`, float32, in evaluation mode."""
        return cls(load_checkpoint(config, LlamaForCausalLM))

    def prefill(self, input_ids: Tensor, state: State | None = None, logits_to_keep: int = 1) -> tuple[Tensor, State]:
        """As in `SequenceModel`, with a state that takes further tokens in place.

        After a prompt its bytes are those of the keys and values; after steps those of room for some more, too.
        """
        if state is None:
            state = GrowingCache(self.model.config.num_hidden_layers)
        with wanting(self.model.model.layers[-1].self_attn.o_proj, logits_to_keep):
            return super().prefill(input_ids, state, logits_to_keep)

    def step(self, input_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """As in `SequenceModel`; with transformers' own attention in PyTorch by the short way."""
        if self.model.config._attn_implementation != NAME or torch.is_grad_enabled():
            return self.prefill(input_ids, state)
        return llama_step(self.model, input_ids, state), state

    @property
    def kernel_path(self) -> str:
        """The attention that ran last: `fused-cpu`, or that which transformers runs, `sdpa`, `eager` …"""
        name = str(self.model.config._attn_implementation)
        return self.model.model.layers[0].self_attn.kernel_path if name == NAME else name

    def flops(self, length: int, mode: Mode) -> int:
        """Per token: 2 a weight of the projections, SwiGLU and head; per pair of query and key: 4 H, for q · k and p v.

        A causal model of L tokens has L (L + 1) / 2 such pairs in each layer, the half that it needs of the full
        square; softmax, norms and rotations are left out, below one percent. `train` is three forwards, the head at
        every token; `prefill` has head and what follows the last attention at its last token; a `step` after L tokens
        has L + 1 pairs.
        """
        config = self.model.config
        width = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        weights = config.hidden_size * (2 * width + 2 * keys + 3 * config.intermediate_size)
        token, pair = 2 * config.num_hidden_layers * weights, 4 * config.num_hidden_layers * width
        head = 2 * config.hidden_size * config.vocab_size
        after = 2 * config.hidden_size * (width + 3 * config.intermediate_size)
        forward = length * token + length * (length + 1) // 2 * pair
        return {
            "train": 3 * (forward + length * head),
            "prefill": forward - (length - 1) * after + head,
            "step": token + (length + 1) * pair + head,
        }[mode]
