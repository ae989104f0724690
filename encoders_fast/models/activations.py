"""Activation functions by the names that checkpoints use, each as one fused torch operator where torch has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from .observers import unobserved

# transformers spells these out as five to eight operators each, with a temporary per operator. "gelu_fast" has the
# constant sqrt(2 / pi) to ten digits; the difference is below a float32's.
_TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate")
_ERF_GELU = ("gelu", "gelu_python")


def activation(hidden_act: str | Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    """The function that `config.hidden_act`, a name or a callable, stands for.

    Raises: ValueError for a name that transformers does not know, TypeError for what is neither.
    """
    if not isinstance(hidden_act, str):
        if callable(hidden_act):
            return hidden_act
        raise TypeError(f"hidden_act must be a name or a callable; it is {hidden_act!r}")
    if hidden_act in _TANH_GELU:
        return nn.GELU(approximate="tanh")
    if hidden_act in _ERF_GELU:
        return nn.GELU()
    if hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act {hidden_act!r} is unknown; transformers has {', '.join(sorted(ACT2FN))}")
    return ACT2FN[hidden_act]


def fused_activation(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """torch's fused operator in the place of what transformers made of a name, where nobody sees the difference."""
    fused = _FUSED.get(type(function))
    return fused if fused is not None and isinstance(function, nn.Module) and unobserved(function) else function


# By class: what the names stand for differs between versions of transformers.
_FUSED = {type(ACT2FN[name]): activation(name) for name in _TANH_GELU + _ERF_GELU}
