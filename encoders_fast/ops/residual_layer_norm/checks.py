"""What residual_layer_norm takes: one clear sentence for everything else, before any work."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _dropout
from .. import _checks
from .._checks import check_dtype, check_eps, check_parameter


def promote(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give x and residual the dtype of the result, and weight and bias one dtype: theirs or float32."""
    if x.dtype == residual.dtype == weight.dtype == bias.dtype:
        return x, residual, weight, bias
    check_dtype("x", x)
    check_dtype("residual", residual)
    x = x.to(torch.promote_types(x.dtype, residual.dtype))
    x, weight, bias = _checks.promote(x, weight, bias)
    return x, residual.to(x.dtype), weight, bias


def check(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    rng_state: Tensor | None,
) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be [..., width], with a width of at least 1; its shape is {tuple(x.shape)}")
    if x.shape != residual.shape:
        raise ValueError(f"x {tuple(x.shape)} and residual {tuple(residual.shape)} differ")
    for name, tensor in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        check_dtype(name, tensor)
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor; its layout is {tensor.layout}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}")
    check_parameter("weight", weight, x)
    check_parameter("bias", bias, x)
    check_eps(eps)
    _dropout.check(dropout_p, rng_state, x.device)
