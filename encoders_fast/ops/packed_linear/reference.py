"""What the op and its gradients mean, in plain PyTorch; also where compilers, autocast and transforms go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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


# ---- gradients, with y = x W^T + bias for each weight; each is differentiable in turn


class Wanted(NamedTuple):
    """Which gradients somebody needs."""

    x: bool
    weights: tuple[bool, ...]
    biases: tuple[bool, ...]


def input_gradient(dy: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    parts = [part @ weight for part, weight in zip(dy, weights, strict=True)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def gradients(
    dy: tuple[Tensor, ...], x: Tensor | None, weights: tuple[Any, ...], wanted: Wanted
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """x [M, K], dy [M, N] for each weight -> the gradients of x, the weights and the biases, where they are wanted.

    x may be None where no weight's is, and the weights where x's is not.
    """
    return (
        input_gradient(dy, weights) if wanted.x else None,
        [part.t() @ x if one and x is not None else None for part, one in zip(dy, wanted.weights, strict=True)],
        [part.sum(0) if one else None for part, one in zip(dy, wanted.biases, strict=True)],
    )
