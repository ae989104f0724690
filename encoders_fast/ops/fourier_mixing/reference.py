"""What the op means, in plain PyTorch. Tests trust this file, so it has no fast paths.

float64 is computed in float64, every other dtype in float32 and rounded once at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import wide


def _mix(x: Tensor, norm: str) -> Tensor:
    return torch.fft.fftn(x, dim=(1, 2), norm=norm).real


def fourier_mixing(x: Tensor, norm: str) -> Tensor:
    return _mix(wide(x), norm).to(x.dtype).contiguous()


def fourier_mixing_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    s = wide(x) + _mix(wide(x), norm)
    rstd = (s.var(-1, unbiased=False) + eps).rsqrt()
    normalized = (s - s.mean(-1, keepdim=True)) * rstd[..., None]
    y = (normalized * weight + bias).to(x.dtype).contiguous()
    if not keep:
        return y, x.new_empty(0), rstd.new_empty(0)
    return y, normalized.to(x.dtype).contiguous(), rstd


def fourier_mixing_layer_norm_backward(
    dy: Tensor, weight: Tensor, normalized: Tensor, rstd: Tensor, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    n, g = wide(normalized), wide(dy) * weight
    ds = rstd[..., None] * (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True))
    dx = (ds + _mix(ds, norm)).to(dy.dtype)
    dweight = (wide(dy) * n).sum((0, 1)).to(weight.dtype)
    dbias = wide(dy).sum((0, 1)).to(weight.dtype)
    return dx.contiguous(), dweight, dbias
