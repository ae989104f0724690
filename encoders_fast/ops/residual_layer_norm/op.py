"""residual_layer_norm: a residual connection and the LayerNorm behind it, with dropout before them.

    s = residual + dropout(x)
    y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias        mean and variance over the last dimension

x, residual, y, s: [..., D], one dtype, any D >= 1 and any number of rows.  weight, bias: [D].  The sum is computed in
float32 and rounded once to the storage type, and mean and variance, in float32 (float64 for float64), are those of the
rounded sum: of what the next layer finds in s. A post-LN layer goes on with y, a pre-LN layer with both.

Dropout keeps the elements that `_dropout.keep` names for `rng_state` and scales them by 1 / (1 - dropout_p). Its mask
is computed again in the backward pass and never stored.

Sources: Layer Normalization (Ba et al., 2016), equation 3; On Layer Normalization in the Transformer Architecture
(Xiong et al., 2020), table 1, for its places; Dropout (Srivastava et al., 2014).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _dispatch, _native
from ..._dispatch import Backend, Key
from .. import _triton
from .._checks import check_tensors
from . import reference
from .autograd import residual_layer_norm_op
from .checks import check, promote


def residual_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    rng_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """s = residual + dropout(x) and y = LayerNorm(s) * weight + bias.

    Args:
        x, residual: [..., D] in float32, bfloat16, float16 or float64; strides are free, there may be no rows.
        weight, bias: [D], on x's device. In float32 they go with any x; other mixtures promote, as in a plain torch
            expression.
        eps: added to the variance.
        dropout_p: probability of an element of x to be dropped, in [0, 1].
        rng_state: int64 [2] (seed, offset) on x's device, needed where dropout_p > 0. Equal states drop equal elements.

    Returns: (y, s), each [..., D] in the (promoted) dtype of x and residual. Differentiable any number of times in x,
    residual, weight and bias, through either or both.

    Raises: ValueError for shapes, devices or a dropout_p that do not fit, and for dropout without rng_state; TypeError
    for another dtype or layout; NotImplementedError where the backend that was asked for cannot run the call.
    """
    check_tensors(x=x, residual=residual, weight=weight, bias=bias)
    x, residual, weight, bias = promote(x, residual, weight, bias)
    y, s, _, _ = residual_layer_norm_op(x, residual, weight, bias, eps, dropout_p, rng_state, _dispatch.forced())
    return y, s


# ---- backends, each named after its file: csrc/residual_layer_norm/cpu.cpp, ./triton.py, ./reference.py


def _cpu_why_not(key: Key) -> str | None:
    if key.device != "cpu":
        return f"runs on the CPU; the input is on {key.device}"
    if torch.float64 in key.dtypes:
        return "computes in float32; the input is float64"
    return _native.missing


def _cpu_forward(*args: Any) -> Any:
    return torch.ops.encoders_fast_native.residual_layer_norm.default(*args)


def _cpu_backward(*args: Any) -> Any:
    return torch.ops.encoders_fast_native.residual_layer_norm_backward.default(*args)


def _triton_why_not(key: Key) -> str | None:
    if key.widths[0] > 16384:
        return f"takes rows of up to 16384 elements; these have {key.widths[0]}"
    return _triton.why_not(key)


def _triton_forward(*args: Any) -> Any:
    from . import triton

    return triton.residual_layer_norm(*args)


def _triton_backward(*args: Any) -> Any:
    from . import triton

    return triton.residual_layer_norm_backward(*args)


def _always(key: Key) -> None:
    return None


def _statics(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    rng_state: Tensor | None = None,
) -> tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]:
    check_tensors(x=x, residual=residual, weight=weight, bias=bias)
    x, residual, weight, bias = promote(x, residual, weight, bias)
    check(x, residual, weight, bias, eps, dropout_p, rng_state)
    return x.device, (x.dtype, weight.dtype), (x.shape[-1],)


_dispatch.define(
    "residual_layer_norm",
    [
        Backend("cpu", _cpu_why_not, _cpu_forward, _cpu_backward),
        Backend("triton", _triton_why_not, _triton_forward, _triton_backward),
        Backend("reference", _always, reference.residual_layer_norm, reference.residual_layer_norm_backward),
    ],
    _statics,
)
