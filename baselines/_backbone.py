"""The shared backbone: a causal language model of transformers whose layers differ in their mixer alone.

    llama    h = h + mixer(norm(h))                                      h = h + SwiGLU(norm(h))
    mamba    h = h + conv(norm(h));  u = norm(h)
             h = h + out_proj( gelu(gate_proj u) * mixer(u) )            h = h + SwiGLU(norm(h))

`llama` is the block of Touvron et al. (arXiv 2302.13971). `mamba` puts Mamba's temporal convolution before the mixer
and its gate around it, as the Mamba backbone of TTT does (arXiv 2407.04620, Fig. 13). Embedding and head are tied.
Every layer names its mixer by family, so a hybrid is a list of names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from baselines._causal_conv import causal_conv
from baselines._mixer import CONV_KERNEL, Mixer, State, each_tensor, mixer_of
from baselines._precision import RMSNorm, at_least_float32
from baselines._swiglu import gated
from baselines.registry import find

EPSILON = 1e-6


class BackboneConfig(PreTrainedConfig):
    """Sizes, and for each layer the family of its mixer with that family's options."""

    model_type = "mixer_backbone"

    vocab_size: int = 256
    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 0
    backbone: str = "llama"
    layers: list[dict[str, Any]] | tuple[dict[str, Any], ...] = ()
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """The depth is that of the list."""
        self.num_hidden_layers = len(self.layers)
        super().__post_init__(**kwargs)


class MixerCache:
    """What every layer remembers, handed to and from the model as `past_key_values`."""

    is_compileable = False

    def __init__(self, layers: int) -> None:
        self.layers: list[State] = [None] * layers
        self.tokens = 0

    def __len__(self) -> int:
        return len(self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far."""
        return self.tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows follow their beams."""
        self.layers = [each_tensor(state, lambda x: x.index_select(0, beam_idx.to(x.device))) for state in self.layers]


class SwiGLU(nn.Module):
    """down( silu(gate x) * up x ), Shazeer, arXiv 2002.05202."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H]."""
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))


class PreConv(nn.Module):
    """Temporal convolution of each channel with its own last inputs, on the normed stream."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size, EPSILON)
        self.conv = nn.Conv1d(hidden_size, hidden_size, CONV_KERNEL, groups=hidden_size)

    def forward(self, h: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """h [B, L, H] after the normed inputs `past` [B, K - 1, H]: output and the next `past`."""
        x = self.norm(h)
        past = x.new_zeros(len(x), CONV_KERNEL - 1, x.shape[-1]) if past is None else past
        window = torch.cat([past, x], 1)
        assert self.conv.bias is not None
        work = torch.promote_types(x.dtype, torch.float32)
        y = causal_conv(window.to(work), self.conv.weight.to(work), self.conv.bias.to(work))
        return y.to(x.dtype), window[:, x.shape[1] :]


class Block(nn.Module):
    """One residual block around a mixer."""

    def __init__(self, config: BackboneConfig, options: dict[str, Any]) -> None:
        super().__init__()
        width, family = config.hidden_size, options["family"]
        self.pre_conv = PreConv(width) if config.backbone == "mamba" else None
        if config.backbone == "mamba":
            self.gate_proj = nn.Linear(width, width, bias=False)
            self.out_proj = nn.Linear(width, width, bias=False)
        self.mixer_norm, self.mlp_norm = RMSNorm(width, EPSILON), RMSNorm(width, EPSILON)
        self.mixer: Mixer = mixer_of(family)(find(family).Config(**options), width)
        self.mlp = SwiGLU(width, config.intermediate_size)

    def forward(self, h: Tensor, state: State | None, keep: bool, wanted: int = 0) -> tuple[Tensor, State | None]:
        """The last `wanted` (0: all) of h [B, L, H]; this layer's state, (past of the convolution, the mixer's)."""
        past, mixer_state = state or (None, None)
        if self.pre_conv is not None:
            convolved, past = self.pre_conv(h, past)
            h = h + convolved
        u = self.mixer_norm(h)
        y, mixer_state = self.mixer(u, mixer_state, keep, wanted)
        if self.pre_conv is not None:
            y = self.out_proj(F.gelu(self.gate_proj(u[:, -wanted:]), approximate="tanh") * y)
        h = h[:, -wanted:] + y
        return h + self.mlp(self.mlp_norm(h)), (past, mixer_state) if keep else None


class BackboneForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, blocks, last norm, tied head."""

    config: BackboneConfig
    config_class = BackboneConfig

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, options) for options in config.layers)
        self.norm = RMSNorm(config.hidden_size, EPSILON)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Token id -> [H]; also the head."""
        return self.embed

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: MixerCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, L, V] of `input_ids` [B, L], or of its last `logits_to_keep` tokens, with the cache after them."""
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("attention_mask masks tokens: the shared backbone reads rows of one length, unpadded")
        keep = past_key_values is not None or bool(use_cache)
        cache = MixerCache(len(self.layers)) if keep and past_key_values is None else past_key_values
        h = self.embed(input_ids)
        for index, block in enumerate(self.layers):
            wanted = logits_to_keep if index == len(self.layers) - 1 and labels is None else 0
            h, state = block(h, None if cache is None else cache.layers[index], keep, wanted)
            if cache is not None:
                cache.layers[index] = each_tensor(state, _owned)
        if cache is not None:
            cache.tokens += input_ids.shape[1]
        logits = at_least_float32(F.linear(self.norm(h)[:, -logits_to_keep:], self.embed.weight))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)  # type: ignore[arg-type]

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> bool:
        """Give `generate` a cache of mixers' states; its own choice holds keys and values."""
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            return False
        model_kwargs["past_key_values"] = MixerCache(len(self.layers))
        return True

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Every module that holds a parameter as below, then what a mixer wants itself."""
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, Mixer):
                module.initialise()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal(0, initializer_range) for matrices, PyTorch's own for convolutions, ones for norms."""
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            bound = (module.in_channels // module.groups * module.kernel_size[0]) ** -0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)


def _owned(x: Tensor) -> Tensor:
    """`x` without history and in memory of its own: a view would keep all of what it was cut from."""
    x = x.detach()
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


AutoConfig.register(BackboneConfig.model_type, BackboneConfig)
AutoModelForCausalLM.register(BackboneConfig, BackboneForCausalLM)
