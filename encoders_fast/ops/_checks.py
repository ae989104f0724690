"""What several ops ask of their arguments, and the width they compute in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensors(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor; it is {type(tensor).__name__}")


def check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64; it is {tensor.dtype}")


def check_parameter(name: str, parameter: Tensor, x: Tensor) -> None:
    """A parameter of x's last dimension."""
    check_dtype(name, parameter)
    if parameter.shape != x.shape[-1:]:
        raise ValueError(f"{name} {tuple(parameter.shape)} must be ({x.shape[-1]},), the width of x {tuple(x.shape)}")
    if parameter.device != x.device:
        raise ValueError(f"{name} is on {parameter.device}, x is on {x.device}")


def check_eps(eps: Any) -> None:
    if not isinstance(eps, (int, float)):
        raise TypeError(f"eps must be a number; it is {eps!r}")
    if not eps >= 0:
        raise ValueError(f"eps must not be negative; it is {eps}")


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


def wide(tensor: Tensor) -> Tensor:
    """float64 as it is, all else in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
