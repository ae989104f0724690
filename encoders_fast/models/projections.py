"""The models' linear layers with what follows them: as calls of the op packed_linear where nobody looks on, else module
by module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ..ops import packed_linear, packed_linears
from ..ops.packed_linear.native import LARGE
from .observers import plain, unobserved

_FORWARD = nn.Linear.forward  # somebody may put another in its place
_DTYPES = (torch.float32, torch.bfloat16)  # of the backends that pack; they run on the CPU
_NAMES = {nn.ReLU: "relu", nn.SiLU: "silu"}


def project(linear: nn.Module, x: Tensor) -> Tensor:
    """linear(x)."""
    return packed_linear(x, linear.weight, linear.bias) if _packs(linear, x) else linear(x)


def project_words(linear: nn.Module, h: Tensor) -> Tensor:
    """linear(h) of a vocabulary. Its rows are changed one by one, which a packed form might miss, and none is kept of a
    large weight."""
    return project(linear, h) if type(linear) is nn.Linear and linear.weight.numel() > LARGE else linear(h)


def project_together(linears: Sequence[Any], x: Tensor) -> tuple[Tensor, ...]:
    """linear(x) of each, as one product: queries, keys and values."""
    if not all(_packs(linear, x) for linear in linears):
        return tuple(linear(x) for linear in linears)
    return packed_linears(x, [linear.weight for linear in linears], [linear.bias for linear in linears])


def activate(function: Callable[[Tensor], Tensor], linear: nn.Module, x: Tensor) -> Tensor:
    """function(linear(x)). Where they are two steps, a GELU without gradients overwrites its input.

    At (8, 512, 768) with F = 3072 in float32 that saves a tenth of the feed-forward block's time: the temporary is
    50 MB of pages that the system would have to map.
    """
    name = _name(function)
    if name is not None and _packs(linear, x):
        return packed_linear(x, linear.weight, linear.bias, name)
    y = linear(x)
    if type(function) is nn.GELU and overwritable(linear, y, function):
        return torch.ops.aten.gelu_(y, approximate=function.approximate)
    return function(y)


def overwritable(linear: nn.Module, output: Tensor, *passed: nn.Module) -> bool:
    """True where nobody but the caller can hold `output`, which `linear` returned and the modules `passed` gave on."""
    return not output.requires_grad and type(linear) is nn.Linear and unobserved(linear, *passed)


def _packs(linear: nn.Module, x: Tensor) -> TypeGuard[nn.Linear]:
    """Whether the op may do its work: a plain linear layer of matching tensors, and no hooks on it."""
    if x.device.type != "cpu" or x.dtype not in _DTYPES or type(linear) is not nn.Linear or not unobserved(linear):
        return False
    weight, bias = linear.weight, linear.bias
    return (
        plain(x)
        and plain(weight)
        and plain(bias)
        and nn.Linear.forward is _FORWARD
        and weight.dtype == x.dtype
        and weight.device == x.device
        and weight.layout == x.layout == torch.strided
        and x.shape[-1] == weight.shape[1] > 0 < weight.shape[0]  # else torch does what it does, or says what is wrong
        and (bias is None or bias.shape == weight.shape[:1])
    )


def _name(function: Callable[[Tensor], Tensor]) -> str | None:
    """What packed_linear calls this activation, if it knows it and nobody sees that it is not called."""
    if not isinstance(function, nn.Module) or not unobserved(function):
        return None
    if type(function) is nn.GELU:
        return "gelu" if function.approximate == "none" else "gelu_tanh"
    return _NAMES.get(type(function))
