"""The TTT layer: a sequence layer whose hidden state is a model that learns while it reads (paper, Sec. 2).

    q, k, v = three views of u        (Mamba backbone: one projection for q and k, then a convolution each)
    q, k    = RoPE inside the mini-batch
    lr_j    = base_lr * sigmoid(<u_j, w_h> + c_h) / f        one gate a head, read from the layer's input u
    tok_i   = max(1 / (i + 1) + learned_i, 0)                place i of the mini-batch; together eta_ij = tok_i lr_j
    y       = the inner loop over (q, k, v)                  `ops.py`
    output  = o_proj( [gelu(g_proj u) *] LayerNorm(y) )

Parameter names and shapes are those of the official PyTorch code, so its checkpoints load by name.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttt_impl.cache import LayerState
from ttt_impl.configuration import TTTConfig
from ttt_impl.convolution import causal_conv, depthwise_conv
from ttt_impl.cpu.pointwise import gated_norm, usable
from ttt_impl.inner_task import TASKS, delayed
from ttt_impl.learner import Inputs, Learner, Weights
from ttt_impl.ops import TTTResult, ttt_linear, ttt_mlp
from ttt_impl.reading import Reading
from ttt_impl.rope import rotate

MLP_EXPANSION = 4


class TTTLayer(nn.Module):
    """TTT-Linear or TTT-MLP with its projections, [B, L, C] -> [B, L, C]."""

    def __init__(self, config: TTTConfig) -> None:
        super().__init__()
        self.config, self.task = config, TASKS[config.inner_task]
        self.learner = Learner(config.inner_norm, config.inner_residual, config.inner_bias)
        self.inner_lr_scale = 1.0
        """Factor on the inner learning rate; a training recipe may warm it up (paper, App. C)."""
        self.kernel_path = ""
        """Which path of `ops.py` the last forward pass took."""
        self.why_not_fused = ""
        """Why it did not take the kernels on a CUDA device; empty where it did, or where there is no such device."""
        width, heads, f = config.hidden_size, config.num_attention_heads, config.head_dim
        self.heads, self.base_lr, self.weight_shapes = heads, config.ttt_base_lr, weight_shapes(config)
        self.q_proj = nn.Linear(width, width, bias=False)
        if not config.share_qk:
            self.k_proj = nn.Linear(width, width, bias=False)
        if self.task.learned_label:
            self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        if config.share_qk:
            self.conv_q = depthwise_conv(width, config.conv_kernel)
            self.conv_k = depthwise_conv(width, config.conv_kernel)
        if config.learnable_eta:
            self.learnable_ttt_lr_weight = nn.Parameter(torch.empty(heads, 1, width))
            self.learnable_ttt_lr_bias = nn.Parameter(torch.empty(heads, 1))
            if config.token_rate == "decay":
                self.learnable_token_idx = nn.Parameter(torch.empty(config.mini_batch_size))
        if config.inner_norm:
            self.ttt_norm_weight = nn.Parameter(torch.empty(heads, f))
            self.ttt_norm_bias = nn.Parameter(torch.empty(heads, f))
        if config.use_gate:
            self.g_proj = nn.Linear(width, width, bias=False)
        self.post_norm = nn.LayerNorm(width, eps=1e-6)
        if config.learnable_w0:
            for name, shape in self.weight_shapes.items():
                if config.inner_bias or name.startswith("W"):
                    self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def forward(self, u: Tensor, reading: Reading, state: LayerState | None = None, wanted: int = 0) -> Tensor:
        """u [B, L, C] -> the last `wanted` outputs (0: all); `state` is read and moved on by all of u."""
        result = self.inner_loop(self.views(u, reading, state), reading, state)
        self.kernel_path, self.why_not_fused = result.path, result.why_not
        y = result.output[:, :, -wanted:].transpose(1, 2).flatten(2).to(u.dtype)
        return self.o_proj(self._normed(y, self.g_proj(u[:, -wanted:]) if self.config.use_gate else None))

    def inner_loop(self, inputs: Inputs, reading: Reading, state: LayerState | None) -> TTTResult:
        """Train and read the learner, from W0 or from `state`."""
        run = ttt_linear if self.config.ttt_layer_type == "linear" else ttt_mlp
        result = run(
            inputs, self.initial_weights(), learner=self.learner, layout=reading.layout,
            state=None if state is None else state.fast, keep_state=state is not None,
            group=self.config.scan_checkpoint_group_size,
            record=0 if state is None else state.record(self.config.mini_batch_size),
        )  # fmt: skip
        if state is not None:
            state.move(result.state, result.closed, self.config.mini_batch_size)
        return result

    def views(self, u: Tensor, reading: Reading, state: LayerState | None = None) -> Inputs:
        """What the inner loop reads: rotated q and k, v [B, H, L, f], the learning rates and the inner LN.

        All in float32 at least, but q, k and v, once rotated, in the precision that the model's products have: bf16
        for a bf16 model and under autocast, which is what the kernels read.
        """
        q, k = self._queries_and_keys(u, reading, state)
        v = self.v_proj(u) if self.task.learned_label else u
        rate = self._gate(u)
        if self.task.delay:
            past = None if state is None else state.recall("key", 1)
            if state is not None:
                state.remember("key", k, 1)
            k = delayed(k, past)
            assert reading.first is not None
            rate = rate.masked_fill(reading.first[:, None], 0)
        work = torch.promote_types(u.dtype, torch.float32)
        q, k, v = (x.to(work).unflatten(-1, (self.heads, -1)) for x in (q, k, v))
        q, k = (rotate(x, reading.rotation) for x in (q, k))
        gamma, beta = self._inner_norm(work)
        q, k, v = (x.to(_product_dtype(u)).transpose(1, 2) for x in (q, k, v))
        return Inputs(q, k, v, rate.to(work), self._token_rate(work), gamma, beta)

    def initial_weights(self) -> Weights:
        """W0 = (W1, b1) or (W1, b1, W2, b2) with heads first; zeros for what the configuration leaves out."""
        like = self.post_norm.weight
        return tuple(
            parameter if (parameter := getattr(self, name, None)) is not None else like.new_zeros(shape)
            for name, shape in self.weight_shapes.items()
        )

    def _normed(self, y: Tensor, gate: Tensor | None) -> Tensor:
        """[gelu(gate) *] LayerNorm(y), [B, L, C]."""
        norm = self.post_norm
        if usable(y, gate, norm.weight):
            return gated_norm(y, gate, norm.weight, norm.bias)
        y = norm(y)
        return y if gate is None else F.gelu(gate, approximate="tanh") * y

    def _queries_and_keys(self, u: Tensor, reading: Reading, state: LayerState | None) -> tuple[Tensor, Tensor]:
        q = self.q_proj(u)
        if not self.config.share_qk:
            return q, self.k_proj(u)
        shared = reading.without_padding(q)
        past = None if state is None else state.recall("qk_conv", self.config.conv_kernel - 1)
        if state is not None:
            state.remember("qk_conv", shared, self.config.conv_kernel - 1)
        age = reading.layout.age
        return causal_conv(self.conv_q, shared, past, age), causal_conv(self.conv_k, shared, past, age)

    def _gate(self, u: Tensor) -> Tensor:
        """lr_j of every head, [B, H, L]."""
        scale = self.base_lr * self.inner_lr_scale * self.heads / u.shape[-1]
        if not self.config.learnable_eta:
            return u.new_full((len(u), self.heads, u.shape[1]), scale)
        gate = F.linear(u, self.learnable_ttt_lr_weight[:, 0], self.learnable_ttt_lr_bias[:, 0])
        return scale * torch.sigmoid(gate).mT

    def _token_rate(self, dtype: torch.dtype) -> Tensor:
        """tok_i, [K]."""
        size, device = self.config.mini_batch_size, self.post_norm.weight.device
        if self.config.token_rate == "constant":
            return torch.ones(size, dtype=dtype, device=device)
        rate = 1 / torch.arange(1, size + 1, dtype=dtype, device=device)
        if self.config.learnable_eta:
            rate = (rate + self.learnable_token_idx).clamp_min(0)
        return rate

    def _inner_norm(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self.config.inner_norm:
            return self.ttt_norm_weight.to(dtype), self.ttt_norm_bias.to(dtype)
        like = self.post_norm.weight
        shape = self.heads, len(like) // self.heads
        return like.new_ones(shape, dtype=dtype), like.new_zeros(shape, dtype=dtype)


def _product_dtype(u: Tensor) -> torch.dtype:
    """What a linear layer makes of u."""
    device = u.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else u.dtype


def weight_shapes(config: TTTConfig) -> dict[str, tuple[int, ...]]:
    """Official names and shapes of W0: W1, b1 for TTT-Linear, W1, b1, W2, b2 for TTT-MLP."""
    heads, f = config.num_attention_heads, config.head_dim
    widths = [f, f] if config.ttt_layer_type == "linear" else [f, MLP_EXPANSION * f, f]
    shapes: dict[str, tuple[int, ...]] = {}
    for n, (rows, columns) in enumerate(pairwise(widths), 1):
        shapes |= {f"W{n}": (heads, rows, columns), f"b{n}": (heads, 1, columns)}
    return shapes
