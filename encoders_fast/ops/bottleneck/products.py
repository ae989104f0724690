"""The parts that both of MobileBERT's ops are made of, forward and backward, in plain PyTorch.

x: [..., D_in], y: [..., D_out]. Sums of gradients over rows are in float32 (float64 for float64).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


def wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _factors(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x and weight in the dtype of their product.

    Beside a bfloat16 matrix a float32 x is rounded to bfloat16, as torch does under autocast. Beside a float16 one it
    is not: it may be beyond what float16 holds.
    """
    if weight.dtype == torch.bfloat16:
        x = x if x.dtype == torch.float64 else x.to(weight.dtype)
    return x, weight.to(x.dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W x + b, a new tensor in x's dtype."""
    dtype = x.dtype
    if dtype == weight.dtype == bias.dtype:
        return F.linear(x, weight, bias)
    x, weight = _factors(x, weight)
    return F.linear(x, weight, bias.to(x.dtype)).to(dtype)


def product_backward(dy: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x, in dy's dtype."""
    factor, weight = _factors(dy, weight)
    return (factor @ weight).to(dy.dtype)


def product_gradients(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias."""
    dbias = wide(dy).flatten(0, -2).sum(0)
    dy, _ = _factors(dy, weight)
    x, _ = _factors(x, weight)
    return dy.flatten(0, -2).t() @ x.flatten(0, -2), dbias


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x * weight + bias where eps is negative, else LayerNorm."""
    if weight.dtype != x.dtype:
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if eps < 0:
        return x * weight + bias
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def norm_backward(dy: Tensor, weight: Tensor, x: Tensor, eps: float) -> Tensor:
    """The gradient of x."""
    gradient = wide(dy) * weight
    if eps >= 0:
        rows, mean, rstd = _statistics(x, eps)
        gradient, *_ = torch.ops.aten.native_layer_norm_backward(
            gradient, rows, x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )
    return gradient.to(x.dtype)


def norm_gradients(dy: Tensor, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias."""
    normalized = wide(x)
    if eps >= 0:
        normalized, mean, rstd = _statistics(x, eps)
        normalized = (normalized - mean) * rstd
    return (wide(dy) * normalized).flatten(0, -2).sum(0), wide(dy).flatten(0, -2).sum(0)


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x wide, and the mean and rstd of its rows."""
    rows = wide(x)
    _, mean, rstd = torch.native_layer_norm(rows, x.shape[-1:], None, None, eps)
    return rows, mean, rstd


def activate(x: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return F.relu(x)
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def activate_backward(dy: Tensor, x: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return torch.ops.aten.threshold_backward(dy, x, 0)
    if activation == "silu":
        return torch.ops.aten.silu_backward(dy, x)
    return torch.ops.aten.gelu_backward(dy, x, approximate="tanh" if activation == "gelu_tanh" else "none")
