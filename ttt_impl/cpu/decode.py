"""Decoding on a CPU: one token through all blocks of a model in one call of `decode.cpp`.

A `Decoder` belongs to one cache. It takes copies of the cache's tensors when it is made, which it changes in place from
then on, and points at the model's parameters where they lie. Whatever it does not know (a module of another type, a
hook, parameters that moved, a cache changed by someone else) sends the token the ordinary way, or begins anew.
"""

import ctypes
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ttt_impl.cache import LayerState, TTTCache
from ttt_impl.configuration import TTTConfig
from ttt_impl.cpu.arguments import point
from ttt_impl.cpu.build import library
from ttt_impl.cpu.fused_cpu import PATH
from ttt_impl.rope import rotations

SOURCE = Path(__file__).parent / "decode.cpp"
MOST_ROWS = 8
"""Beyond, products of matrices pay more than fewer calls."""
PUBLISHED = {
    "inner_task": "multi_view", "inner_norm": True, "inner_residual": True, "inner_bias": True, "learnable_eta": True,
    "token_rate": "decay", "hidden_act": "silu",
}  # fmt: skip
PARAMETERS = {
    "pre_norm": "conv.norm.weight", "pre_conv": "conv.conv.weight", "pre_bias": "conv.conv.bias",
    "seq_norm": "seq_norm.weight", "ffn_norm": "ffn_norm.weight",
    "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight",
    "q": "q_proj.weight", "k": "k_proj.weight", "v": "v_proj.weight", "o": "o_proj.weight", "g": "g_proj.weight",
    "conv_q": "conv_q.weight", "bias_q": "conv_q.bias", "conv_k": "conv_k.weight", "bias_k": "conv_k.bias",
    "lr_weight": "learnable_ttt_lr_weight", "lr_bias": "learnable_ttt_lr_bias", "token": "learnable_token_idx",
    "gamma": "ttt_norm_weight", "beta": "ttt_norm_bias", "post_weight": "post_norm.weight",
    "post_bias": "post_norm.bias",
}  # fmt: skip
"""Field of `struct Block` -> parameter of a block, those of the TTT layer without its prefix."""
PASTS = {"pre_past": "pre_conv", "qk_past": "qk_conv"}


DECODERS: "WeakKeyDictionary[TTTCache, Decoder]" = WeakKeyDictionary()
"""Kept beside the caches, whose contents they are not."""


class _Block(ctypes.Structure):
    """Mirrors `struct Block`."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in (*PARAMETERS, *PASTS)),
        ("weights", ctypes.c_void_p * 2),
        ("rows", ctypes.c_void_p * 4),
        ("lr_scale", ctypes.c_double),
    ]


class _Model(ctypes.Structure):
    """Mirrors `struct Model`."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("blocks", "norm", "rotations", "fill", "h")),
        *((n, ctypes.c_int64) for n in ("count", "batch", "width", "heads", "inner", "taps", "size", "mlp", "threads")),
        ("eps", ctypes.c_double),
    ]


class Decoder:
    """All blocks and the last norm of a `TTTModel`, over the state in a cache."""

    def __init__(self, model: Any, config: TTTConfig, cache: TTTCache) -> None:
        self.model, self.config, self.batch = model, config, len(cache.positions)
        self.ttt = [block.seq_modeling_block for block in model.layers]
        self.parameters = list(model.parameters())
        self.pointers = [x.data_ptr() for x in self.parameters]
        self.blocks = (_Block * len(self.ttt))()
        self.fill = (ctypes.c_int64 * self.batch)()
        table = rotations(
            config.mini_batch_size, config.head_dim, config.rope_theta, self.parameters[0].device, torch.float32
        )
        self.rotations = torch.view_as_real(table).contiguous()
        self.states = [_own(state) for state in cache.layers]
        self.tensors = [state.tensors() for state in self.states]
        for struct, block, layer, state in zip(self.blocks, model.layers, self.ttt, self.states, strict=True):
            named = dict(block.named_parameters())
            for field, name in PARAMETERS.items():
                parameter = named.get(name, named.get(f"seq_modeling_block.{name}"))
                setattr(struct, field, None if parameter is None else parameter.data_ptr())
            for field, name in PASTS.items():
                setattr(struct, field, state.past[name].data_ptr() if name in state.past else None)
            assert state.fast is not None
            point(struct.weights, state.fast.weights)
            point(struct.rows, state.fast.rows)
            layer.kernel_path = PATH
        self.struct = _Model(
            blocks=ctypes.addressof(self.blocks), norm=model.norm.weight.data_ptr(),
            rotations=self.rotations.data_ptr(), fill=ctypes.addressof(self.fill), count=len(self.blocks),
            batch=self.batch, width=config.hidden_size, heads=config.num_attention_heads,
            inner=config.intermediate_size, taps=config.conv_kernel, size=config.mini_batch_size,
            mlp=config.ttt_layer_type == "mlp", eps=config.rms_norm_eps,
        )  # fmt: skip

    def is_current(self, model: nn.Module, cache: TTTCache) -> bool:
        """Whether parameters and state still lie where they lay."""
        return (
            model is self.model
            and all(x.data_ptr() == pointer for x, pointer in zip(self.parameters, self.pointers, strict=True))
            and all(a is b for a, b in zip(cache.layers, self.states, strict=True))
            and all(_same(a.tensors(), b) for a, b in zip(self.states, self.tensors, strict=True))
        )

    def step(self, h: Tensor, positions: list[int]) -> None:
        """Embeddings h [B, 1, C] of the tokens at `positions` become the last norm's output; the state moves on."""
        scale = self.config.num_attention_heads / self.config.hidden_size
        for struct, layer in zip(self.blocks, self.ttt, strict=True):
            struct.lr_scale = layer.base_lr * layer.inner_lr_scale * scale
        self.fill[:] = [position % self.config.mini_batch_size for position in positions]
        self.struct.h, self.struct.threads = h.data_ptr(), torch.get_num_threads()
        operator = library(SOURCE)
        assert operator is not None
        operator.ttt_decode(ctypes.byref(self.struct))


def decoder(model: nn.Module, config: TTTConfig, cache: TTTCache | None, h: Tensor) -> Decoder | None:
    """The decoder of a cache for embeddings h [B, L, C]; None where the token has to go the ordinary way."""
    if (
        cache is None or h.shape[1] != 1 or len(h) > MOST_ROWS or h.dtype != torch.float32 or h.device.type != "cpu"
        or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or cache.rewind or cache.counter is not None
        or any(state.fast is None for state in cache.layers)
    ):  # fmt: skip
        return None
    known = DECODERS.get(cache)
    if known is None or not known.is_current(model, cache):
        if not _fits(model, config, cache) or library(SOURCE) is None:
            return None
        DECODERS[cache] = known = Decoder(model, config, cache)
    return known


def _fits(model: nn.Module, config: TTTConfig, cache: TTTCache) -> bool:
    """Whether a model is made of what `decode.cpp` knows."""
    plain = all(
        type(x).__module__.startswith(("torch.nn.modules", "ttt_impl.", "transformers.activations"))
        for x in model.modules()
    )
    hooks = any(x._forward_hooks or x._forward_pre_hooks for x in model.modules())
    tensors = [*model.parameters(), *(x for state in cache.layers for x in state.tensors())]
    return (
        plain and not hooks and all(getattr(config, name) == value for name, value in PUBLISHED.items())
        and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)
        and all(x.is_contiguous() for x in model.parameters())
    )  # fmt: skip


def _own(state: LayerState) -> LayerState:
    """Give a layer's state copies that nobody else holds."""
    assert state.fast is not None
    state.fast = state.fast.each(lambda x: x.detach().contiguous().clone())
    state.past = {name: x.detach().contiguous().clone() for name, x in state.past.items()}
    return state


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
