"""What packed_linear takes: one clear sentence for everything else, before any work."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_dtype, check_tensors

_USUAL = (torch.float32, torch.bfloat16)
# In the order of csrc/common/cpu/activation.h.
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")


def fits(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None) -> bool:
    """Whether `check` has nothing to say, for the usual call: a third of its time."""
    try:
        N, K = weight.shape
        return (
            x.dtype == weight.dtype
            and x.dtype in _USUAL
            and x.is_cpu
            and weight.is_cpu
            and x.layout == weight.layout == torch.strided
            and x.shape[-1] == K > 0 < N
            and activation in ACTIVATIONS
            and (bias is None or (bias.shape == (N,) and bias.dtype == x.dtype and bias.is_cpu and not bias.is_sparse))
            and residual is None
        )
    except (AttributeError, IndexError, TypeError, ValueError):
        return False


def check(
    x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor | None, ...], activation: str, residual: Tensor | None
) -> None:
    named = {"x": x, "weight": weights[0]}
    others: dict[str, Tensor | None] = {"bias": biases[0], "residual": residual}
    for i, (weight, bias) in enumerate(zip(weights[1:], biases[1:], strict=True), 1):
        named[f"weights[{i}]"] = weight
        others[f"biases[{i}]"] = bias
    given = named | {name: tensor for name, tensor in others.items() if tensor is not None}
    check_tensors(**given)
    for name, tensor in given.items():
        check_dtype(name, tensor)
        if tensor.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{name} is {tensor.dtype}, x is {x.dtype}; packed_linear does not promote")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor; its layout is {tensor.layout}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be [..., K], with a K of at least 1; its shape is {tuple(x.shape)}")
    for weight, bias in zip(weights, biases, strict=True):
        if weight.dim() != 2 or weight.shape[1] != x.shape[-1] or weight.shape[0] == 0:
            raise ValueError(
                f"weight must be [N, {x.shape[-1]}], as x is {tuple(x.shape)}; it is {tuple(weight.shape)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias must be ({weight.shape[0]},), as weight has that many rows; it is {tuple(bias.shape)}"
            )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; it is {activation!r}")
    if residual is not None and residual.shape != (*x.shape[:-1], weights[0].shape[0]):
        shape = (*x.shape[:-1], weights[0].shape[0])
        raise ValueError(f"residual must be {tuple(shape)}, like the result; it is {tuple(residual.shape)}")
