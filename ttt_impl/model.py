"""TTT language models as citizens of transformers: `TTTModel` and `TTTForCausalLM`.

`forward` reads whole sequences, goes on from a cache by any number of tokens, takes prompts padded on the left
(`attention_mask`) and documents packed in rows (`cu_seqlens`, or `position_ids` that restart at 0).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.generation import GenerationMixin
from transformers.generation.configuration_utils import GenerationConfig, GenerationMode
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ttt_impl.backbone import Block, RMSNorm
from ttt_impl.cache import TTTCache
from ttt_impl.configuration import TTTConfig
from ttt_impl.cpu.decode import decoder
from ttt_impl.documents import document_starts, left_padding
from ttt_impl.pretrained import TTTPreTrainedModel
from ttt_impl.reading import Reading, read, read_counted

IGNORED = -100


class TTTModel(TTTPreTrainedModel):
    """Embeddings, blocks and the last norm."""

    def __init__(self, config: TTTConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: TTTCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cu_seqlens: Tensor | None = None,
        cache_params: TTTCache | None = None,
        wanted: int = 0,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids [B, L] -> last_hidden_state [B, L, C]; `cache_params` is the official name of the cache.

        Of the last `wanted` tokens alone, if it is not 0: what follows the last inner loop is spared the others.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids and inputs_embeds: exactly one of the two must be given")
        h = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(past_key_values if past_key_values is not None else cache_params, use_cache, len(h))
        starts = document_starts(cu_seqlens, position_ids, h, cache is not None or attention_mask is not None)
        decode = (
            None if output_hidden_states or self.config.output_hidden_states else decoder(self, self.config, cache, h)
        )
        if decode and cache and left_padding(attention_mask, 1, cache.positions) is None:
            decode.step(h := h.clone() if input_ids is None else h, cache.positions)
            cache.advance(1, None)
            return BaseModelOutputWithPast(last_hidden_state=h, past_key_values=cache)  # type: ignore[arg-type]
        reading = self._reading(h, cache, attention_mask, starts)
        states: list[Tensor] | None = [] if output_hidden_states or self.config.output_hidden_states else None
        length, last = h.shape[1], len(self.layers) - 1
        for layer, block in enumerate(self.layers):
            if states is not None:
                states.append(h)
            state = None if cache is None else cache.layers[layer]
            h = block(h, reading, state, wanted if layer == last and states is None else 0)
        if cache is not None:
            cache.advance(length, reading.layout.padding)
        h = self.norm(h)
        return BaseModelOutputWithPast(
            last_hidden_state=h,
            past_key_values=cache,  # type: ignore[arg-type]
            hidden_states=None if states is None else (*states, h),
        )

    def _reading(
        self, h: Tensor, cache: TTTCache | None, attention_mask: Tensor | None, starts: Tensor | None
    ) -> Reading:
        """Where the tokens h [B, L, C] sit."""
        if cache is not None and cache.counter is not None:
            if h.shape[1] != 1 or attention_mask is not None:
                raise ValueError(
                    f"{h.shape[1]} tokens{'' if attention_mask is None else ' and attention_mask'} for a cache of "
                    "fixed addresses; valid choices: one token a row without a mask, or cache.copy(), which has none"
                )
            return read_counted(self.config, h, cache.counter)
        positions = [0] * len(h) if cache is None else cache.positions
        padding = left_padding(attention_mask, h.shape[1], positions)
        return read(self.config, h, positions, padding, starts)

    def _cache(self, given: TTTCache | None, use_cache: bool | None, batch: int) -> TTTCache | None:
        """The cache to read and move on, if any."""
        wanted = self.config.use_cache if use_cache is None else use_cache
        if given is None and wanted and not (self.gradient_checkpointing and self.training):
            given = TTTCache(self.config)
        if given is None:
            return None
        if not isinstance(given, TTTCache):
            raise ValueError(f"past_key_values={type(given).__name__}; valid choices: a TTTCache, or None to start one")
        given.start(batch)
        return given


@dataclass
class TTTCausalLMOutput(CausalLMOutputWithPast):
    """Loss, logits, cache, hidden states."""

    @property
    def cache_params(self) -> Any:
        """The official name of `past_key_values`."""
        return self.past_key_values


class TTTForCausalLM(TTTPreTrainedModel, GenerationMixin):
    """A TTT language model with its head, tied to the embeddings unless the configuration says otherwise."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: TTTConfig) -> None:
        super().__init__(config)
        self.model = TTTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: TTTCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cu_seqlens: Tensor | None = None,
        cache_params: TTTCache | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> TTTCausalLMOutput | tuple[Any, ...]:
        """input_ids [B, L] -> logits [B, L or logits_to_keep, V] in float32 at least, and the loss if there are labels.

        `labels` [B, L] are shifted here, -100 is ignored, and so is the first token of every packed document.
        """
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
            output_hidden_states=output_hidden_states, cu_seqlens=cu_seqlens, cache_params=cache_params,
            wanted=logits_to_keep if isinstance(logits_to_keep, int) and labels is None else 0,
        )  # fmt: skip
        h = outputs.last_hidden_state
        logits = self.lm_head(h[:, keep])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = None
        if labels is not None:
            packed = past_key_values is None and cache_params is None and attention_mask is None
            starts = document_starts(cu_seqlens, position_ids, h, not packed)
            loss = next_token_loss(logits, labels, starts, num_items_in_batch)
        result = TTTCausalLMOutput(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )
        return result.to_tuple() if return_dict is False else result

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers, with the cache unless asked otherwise.

        `config.use_cache` is False in official configurations, where it speaks of `forward`.
        """
        if len(args) < 2 and kwargs.get("generation_config") is None:
            kwargs.setdefault("use_cache", True)
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> bool:
        """Give `generate` a TTTCache; its own choice, a DynamicCache, cannot hold fast weights."""
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            return False
        cache = TTTCache(self.config)
        if generation_mode == GenerationMode.ASSISTED_GENERATION or generation_config.is_assistant:
            cache.activate_past_recording()
        model_kwargs["past_key_values"] = cache
        return True


def next_token_loss(
    logits: Tensor, labels: Tensor, starts: Tensor | None, num_items: int | Tensor | None = None
) -> Tensor:
    """Cross-entropy of labels [B, L] one place ahead of logits [B, L, V]; mean, or sum / `num_items`."""
    if logits.shape[:2] != labels.shape:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} with logits for {tuple(logits.shape[:2])}; "
            "valid choices: labels [B, L] and logits_to_keep=0"
        )
    targets = labels[:, 1:].to(logits.device)
    if starts is not None:
        targets = targets.masked_fill(starts[:, 1:], IGNORED)
    flat = logits[:, :-1].flatten(0, 1), targets.flatten()
    if num_items is None:
        return F.cross_entropy(*flat, ignore_index=IGNORED)
    return F.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum") / num_items
