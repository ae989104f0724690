"""What fourier_mixing takes: one clear sentence for everything else, before any work."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_dtype, check_eps, check_parameter


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
    check_parameter("weight", weight, x)
    check_parameter("bias", bias, x)
    check_eps(eps)
