"""What the op means, in plain PyTorch; also where gradients, compilers, autocast and transforms go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
