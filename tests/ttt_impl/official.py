"""The official layer's mathematics once more, written for comparison only: slow, literal, and sharing no code.

What the library rewrites is left unrewritten here: eta is a full K x K matrix a mini-batch, biases are biases, RoPE is
the permute / rotate-half / permute-back of the published code, the convolution is four shifted products, GELU and its
slope are the tanh formulas. One sequence after another, one head at a time, one mini-batch at a time.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ttt_impl import TTTConfig

Parameters = dict[str, Tensor]


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return weight * (x - mean) / torch.sqrt(variance + 1e-6) + bias


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


def tanh_gelu_slope(x: Tensor) -> Tensor:
    t = torch.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x))
    return 0.5 * x * ((1 - t * t) * (0.7978845608028654 + 0.1070322242691166 * x * x)) + 0.5 * (1 + t)


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [L, C], weight [C, 1, k]."""
    kernel = weight.shape[-1]
    padded = torch.cat([x.new_zeros(kernel - 1, x.shape[1]), x])
    return bias + sum(padded[j : j + len(x)] * weight[:, 0, j] for j in range(kernel))


def rope(x: Tensor, size: int, theta: float) -> Tensor:
    """x [L, f]; positions modulo the mini-batch."""
    length, f = x.shape
    x = x.reshape(length, f // 2, 2).transpose(1, 2).reshape(length, f)
    inverse = 1.0 / (theta ** (torch.arange(0, f, 2, dtype=x.dtype) / f))
    angles = (torch.arange(length) % size).to(x.dtype)[:, None] * inverse
    angles = torch.cat([angles, angles], -1)
    half = torch.cat([-x[:, f // 2 :], x[:, : f // 2]], -1)
    x = x * angles.cos() + half * angles.sin()
    return x.reshape(length, 2, f // 2).transpose(1, 2).reshape(length, f)


def loss_gradient(z: Tensor, target: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    f = z.shape[-1]
    std = torch.sqrt(z.var(-1, unbiased=False, keepdim=True) + 1e-6)
    x = (z - z.mean(-1, keepdim=True)) / std
    a = (gamma * x + beta - target) * gamma
    return (f * a - a.sum(-1, keepdim=True) - x * (a * x).sum(-1, keepdim=True)) / (f * std)


def linear_mini_batch(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, gamma: Tensor, beta: Tensor, w: list[Tensor]
) -> Tensor:
    """One mini-batch of one head; eta [K, K]; w = [W1, b1] is replaced by what follows it."""
    w1, b1 = w
    g = loss_gradient(k @ w1 + b1, v - k, gamma, beta)
    z_bar = q @ w1 - (eta * torch.tril(q @ k.T)) @ g + b1 - torch.tril(eta) @ g
    last = eta[-1][:, None]
    w[:] = w1 - (last * k).T @ g, b1 - (last * g).sum(0, keepdim=True)
    return q + layer_norm(z_bar, gamma, beta)


def mlp_mini_batch(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, gamma: Tensor, beta: Tensor, w: list[Tensor]
) -> Tensor:
    w1, b1, w2, b2 = w
    z1 = k @ w1 + b1
    x2 = tanh_gelu(z1)
    g2 = loss_gradient(x2 @ w2 + b2, v - k, gamma, beta)
    g1 = g2 @ w2.T * tanh_gelu_slope(z1)
    z1_bar = q @ w1 - (eta * torch.tril(q @ k.T)) @ g1 + b1 - torch.tril(eta) @ g1
    x2_bar = tanh_gelu(z1_bar)
    z2_bar = x2_bar @ w2 - (eta * torch.tril(x2_bar @ x2.T)) @ g2 + b2 - torch.tril(eta) @ g2
    last = eta[-1][:, None]
    w[:] = (
        w1 - (last * k).T @ g1, b1 - (last * g1).sum(0, keepdim=True),
        w2 - (last * x2).T @ g2, b2 - (last * g2).sum(0, keepdim=True),
    )  # fmt: skip
    return q + layer_norm(z2_bar, gamma, beta)


def ttt_layer(config: TTTConfig, p: Parameters, u: Tensor) -> Tensor:
    """u [L, C]."""
    heads, size = config.num_attention_heads, config.mini_batch_size
    f = config.hidden_size // heads
    q = u @ p["q_proj.weight"].T
    if config.share_qk:
        shared = q
        q = convolution(shared, p["conv_q.weight"], p["conv_q.bias"])
        k = convolution(shared, p["conv_k.weight"], p["conv_k.bias"])
    else:
        k = u @ p["k_proj.weight"].T
    v = u @ p["v_proj.weight"].T
    step = linear_mini_batch if config.ttt_layer_type == "linear" else mlp_mini_batch
    outputs = []
    for h in range(heads):
        channels = slice(h * f, (h + 1) * f)
        qh, kh, vh = (rope(x[:, channels], size, config.rope_theta) for x in (q, k)), None, v[:, channels]
        qh, kh = qh
        gate = torch.sigmoid(u @ p["learnable_ttt_lr_weight"][h, 0] + p["learnable_ttt_lr_bias"][h, 0])
        lr = config.ttt_base_lr * gate / f
        tok = torch.clamp_min(1.0 / torch.arange(1, size + 1, dtype=u.dtype) + p["learnable_token_idx"], 0.0)
        w = [p[name][h] for name in ("W1", "b1", "W2", "b2") if name in p]
        gamma, beta = p["ttt_norm_weight"][h], p["ttt_norm_bias"][h]
        rows = []
        for start in range(0, len(u), size):
            part = slice(start, start + size)
            eta = tok[: len(u[part]), None] * lr[None, part]
            rows.append(step(qh[part], kh[part], vh[part], eta, gamma, beta, w))
        outputs.append(torch.cat(rows))
    y = layer_norm(torch.cat(outputs, -1), p["post_norm.weight"], p["post_norm.bias"])
    if config.use_gate:
        y = tanh_gelu(u @ p["g_proj.weight"].T) * y
    return y @ p["o_proj.weight"].T


def logits(config: TTTConfig, parameters: Parameters, ids: Tensor) -> Tensor:
    """ids [L] -> logits [L, V]."""
    h = parameters["model.embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        p = {k.removeprefix(prefix): v for k, v in parameters.items() if k.startswith(prefix)}
        inner = {k.removeprefix("seq_modeling_block."): v for k, v in p.items()}
        if config.pre_conv:
            h = h + convolution(rms_norm(h, p["conv.norm.weight"]), p["conv.conv.weight"], p["conv.conv.bias"])
        h = h + ttt_layer(config, inner, rms_norm(h, p["seq_norm.weight"]))
        m = rms_norm(h, p["ffn_norm.weight"])
        h = (
            h
            + (F.silu(m @ p["mlp.gate_proj.weight"].T) * (m @ p["mlp.up_proj.weight"].T)) @ p["mlp.down_proj.weight"].T
        )
    return rms_norm(h, parameters["model.norm.weight"]) @ parameters["lm_head.weight"].T
