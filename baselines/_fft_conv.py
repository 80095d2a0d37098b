"""Causal convolution of long sequences by the FFT: y_t = Σ_k taps_k x_{t - k}, in O(T log T) for any number of taps."""

from __future__ import annotations

import torch
from torch import Tensor


def fft_conv(x: Tensor, taps: Tensor, length: int) -> Tensor:
    """The last `length` outputs [B, H, length] of `x` [B, H, T] convolved with `taps` [H, K].

    What lies before `x` is zero. A circular convolution of n points puts its wrapped part onto the first
    K - 1 - (n - T) outputs, so with n >= K - 1 + length the last ones are free of it (overlap-save).
    """
    needed = max(x.shape[-1], taps.shape[-1] - 1 + length)
    n = 1 << (needed - 1).bit_length()
    y = torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(taps, n), n)
    return y[..., x.shape[-1] - length : x.shape[-1]]


def fft_flops(length: int, taps: int) -> int:
    """Operations of one channel: three real transforms of 2.5 n log2 n each, and 6 for each of n / 2 products."""
    n = 1 << (taps - 1 + length - 1).bit_length()
    return int(7.5 * n * (n.bit_length() - 1)) + 3 * n
