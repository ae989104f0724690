"""What fourier_mixing takes: one clear sentence for everything else, before any work."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def promote(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give x the dtype of the result, and weight and bias one dtype: x's or float32."""
    if x.dtype == weight.dtype == bias.dtype:
        return x, weight, bias
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        check_dtype(name, tensor)
    dtype = x.dtype
    for parameter in (weight, bias):
        if parameter.dtype != torch.float32:
            dtype = torch.promote_types(dtype, parameter.dtype)
    parameter_dtype = torch.promote_types(weight.dtype, bias.dtype)
    if parameter_dtype != torch.float32:
        parameter_dtype = dtype
    return x.to(dtype), weight.to(parameter_dtype), bias.to(parameter_dtype)


def check_tensors(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor; it is {type(tensor).__name__}")


def check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64; it is {tensor.dtype}")


def check(x: Tensor, norm: str) -> None:
    if x.dim() != 3:
        raise ValueError(f"x must be [batch, tokens, width]; its shape is {tuple(x.shape)}")
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise ValueError(f"x needs at least one token and a width of at least 1; its shape is {tuple(x.shape)}")
    check_dtype("x", x)
    if x.layout != torch.strided:
        raise TypeError(f"x must be a dense tensor; its layout is {x.layout}")
    if norm not in ("backward", "ortho"):
        raise ValueError(f'norm must be "backward" or "ortho"; it is {norm!r}')


def check_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: str) -> None:
    check(x, norm)
    width, device = x.shape[2:], x.device
    for name, parameter in (("weight", weight), ("bias", bias)):
        check_dtype(name, parameter)
        if parameter.shape != width:
            raise ValueError(
                f"{name} {tuple(parameter.shape)} must be ({x.shape[2]},), the width of x {tuple(x.shape)}"
            )
        if parameter.device != device:
            raise ValueError(f"{name} is on {parameter.device}, x is on {x.device}")
    if not isinstance(eps, (int, float)):
        raise TypeError(f"eps must be a number; it is {eps!r}")
    if not eps >= 0:
        raise ValueError(f"eps must not be negative; it is {eps}")
