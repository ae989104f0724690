"""What the op and its gradients mean, in plain PyTorch; also where compilers, autocast and transforms go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def packed_linear(
    x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor | None, ...], activation: str, residual: Tensor | None
) -> tuple[Tensor, ...]:
    outputs = [FUNCTIONS[activation](F.linear(x, w, b)) for w, b in zip(weights, biases, strict=True)]
    return tuple(outputs) if residual is None else tuple(y + residual for y in outputs)


# ---- gradients, with z = x W^T + bias for each weight; each is differentiable in turn


class Wanted(NamedTuple):
    """Which gradients somebody needs."""

    x: bool
    weights: tuple[bool, ...]
    biases: tuple[bool, ...]


def activation_gradient(dy: Tensor, z: Tensor, activation: str) -> Tensor:
    """dz. relu may have its result in place of z."""
    if activation == "none":
        return dy
    if activation == "relu":
        return torch.ops.aten.threshold_backward(dy, z, 0)
    if activation == "silu" and torch.is_grad_enabled():  # torch's operator has no derivative
        sigmoid = z.sigmoid()
        return dy * (sigmoid * (1 + z * (1 - sigmoid)))
    if activation == "silu":
        return torch.ops.aten.silu_backward(dy, z)
    return torch.ops.aten.gelu_backward(dy, z, approximate="tanh" if activation == "gelu_tanh" else "none")


def input_gradient(dz: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    parts = [part @ weight for part, weight in zip(dz, weights, strict=True)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def gradients(
    dz: tuple[Tensor, ...], x: Tensor, weights: tuple[Tensor, ...], wanted: Wanted
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """x [M, K], dz [M, N] for each weight -> the gradients of x, the weights and the biases, where they are wanted."""
    return (
        input_gradient(dz, weights) if wanted.x else None,
        [part.t() @ x if one else None for part, one in zip(dz, wanted.weights, strict=True)],
        [part.sum(0) if one else None for part, one in zip(dz, wanted.biases, strict=True)],
    )
