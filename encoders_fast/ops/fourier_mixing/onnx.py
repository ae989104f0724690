"""The ONNX form of fourier_mixing: its Fourier transforms as products with real matrices.

Where torch.onnx.export (dynamo=True) meets the op, it takes what stands here instead; importing this file is all that
this needs. Batch and length may be dynamic.

    y = C_T x C_D - S_T x S_D,   C_N = cos(2 pi j k / N),   S_N = sin(2 pi j k / N)

The first product is even in the width and the second odd, so that columns h and D - h of y are the difference and the
sum of one pair of columns: half of the work suffices. j k is taken modulo N while it is an integer, which keeps the
angles of a long transform as exact as those of a short one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.nn import functional as F

from .._checks import wide
from . import op as _op  # noqa: F401  defines the torch ops below


def _waves(size: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi j k / size for j < size and k < count: [size, count] in `like`'s dtype."""
    steps = torch.arange(size, device=like.device)
    period = torch.full((), size, device=like.device)  # ONNX takes no symbolic number as a remainder's divisor
    angles = (steps[:, None] * steps[:count]).remainder(period).to(like.dtype) * (2 * math.pi / size)
    return angles.cos(), angles.sin()


def _mix(x: Tensor, norm: str) -> Tensor:
    """Re(FFT2(x)) of x [B, T, D] in float32 or float64."""
    _, T, D = x.shape
    half = D // 2 + 1
    cos_width, sin_width = _waves(D, half, x)
    cos_tokens, sin_tokens = _waves(T, T, x)
    even = cos_tokens @ (x @ cos_width)
    odd = sin_tokens @ (x @ sin_width)
    y = torch.cat([even - odd, (even + odd)[:, :, 1 : D - half + 1].flip(-1)], dim=-1)
    return y / math.sqrt(D) / T**0.5 if norm == "ortho" else y


@register_decomposition(torch.ops.encoders_fast.fourier_mixing.default)
def fourier_mixing(x: Tensor, norm: str, backend: str | None) -> Tensor:
    return _mix(wide(x), norm).to(x.dtype)


@register_decomposition(torch.ops.encoders_fast.fourier_mixing_layer_norm.default)
def fourier_mixing_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: str, keep: bool, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    s = wide(x) + _mix(wide(x), norm)
    width = x.shape[2:]
    y = F.layer_norm(s, width, weight.to(s.dtype), bias.to(s.dtype), eps).to(x.dtype)
    if not keep:
        return y, x.new_empty(0), s.new_empty(0)
    rstd = (s.var(-1, unbiased=False) + eps).rsqrt()
    return y, F.layer_norm(s, width, None, None, eps).to(x.dtype), rstd
