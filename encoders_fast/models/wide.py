"""Layers of a model whose activations may be wider than its parameters.

MobileBERT's residual stream grows to 1e7 in single channels, and float16 ends at 65504. Where the parameters are
float16, or torch's autocast wants products in it, the activations stay float32.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def wide_enough(h: Tensor) -> Tensor:
    return h.float() if h.dtype == torch.float16 else h


def without_float16(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Where autocast would take x to float16 it does nothing."""
    device = x.device.type
    if (
        x.dtype == torch.float16
        or not torch.amp.is_autocast_available(device)
        or not torch.is_autocast_enabled(device)
        or torch.get_autocast_dtype(device) != torch.float16
    ):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


class Linear(nn.Linear):
    """nn.Linear that takes an input of another dtype than its parameters', and gives its dtype back."""

    def forward(self, x: Tensor) -> Tensor:
        autocast = torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)
        with without_float16(x):
            if x.dtype == self.weight.dtype or (autocast and torch.get_autocast_dtype(x.device.type) != torch.float16):
                return super().forward(x)
            return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm that takes an input of another dtype than its parameters', and gives its dtype back."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class NoNorm(nn.Module):
    """x * weight + bias, in place of a normalization. The parameters are [width]."""

    eps = None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias
