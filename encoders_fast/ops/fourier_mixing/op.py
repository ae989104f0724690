"""fourier_mixing: FNet's token mixing, the real part of a Fourier transform over tokens and width.

    y = Re(FFT_tokens(FFT_width(x)))                                   fourier_mixing
    y = LayerNorm(x + Re(FFT_tokens(FFT_width(x)))) * weight + bias    fourier_mixing_layer_norm

x, y: [B, T, D], one dtype, any T >= 1 and D >= 1.  weight, bias: [D].  Float32 inside whatever the storage type
(float64 for float64), and unlike other residual sums of this library the one before the LayerNorm is not rounded to the
storage type: with a mean of 0.021 it overflows float16 at T = 4096, D = 768. The map is linear and its matrix
symmetric, so its gradient is the map itself.

The CPU backend's memory beside its result is half a spectrum, (T / 2 + 1) (D / 2 + 1) complex numbers, for each sample
that is computed at a time (at most one per thread), rounded up to groups of columns that fill two vectors (32 with
AVX-512: narrower widths pay for 32). Where T or D has a prime factor above 7, each thread has two more buffers of such
groups, with a little over twice as many rows.

The Triton backend has half a spectrum of all samples in float32, twice where T is too long, or the batch too small, for
the transform over the tokens in one kernel; the backward pass, and the LayerNorm of rows that are wide and not a
multiple of 16, the sum in float32 too. Matrices, at most 1.25 MiB for each length that occurs, are kept. They are
copied to the device at a length's first call, which a CUDA graph cannot capture: call the op once before.

Source: FNet: Mixing Tokens with Fourier Transforms (Lee-Thorp et al., 2021), equation 3 and figure 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ... import _dispatch, _native
from ..._dispatch import Backend, Key
from .. import _triton
from .._checks import check_tensors, promote
from . import reference
from .autograd import layer_norm_op, mixing_op
from .checks import check, check_layer_norm


def fourier_mixing(x: Tensor, norm: str = "backward") -> Tensor:
    """Re(FFT2(x)) over the tokens and the width of x.

    Args:
        x: [B, T, D] in float32, bfloat16, float16 or float64; strides are free, B may be 0.
        norm: "backward" (no scaling, as FNet) or "ortho" (divided by sqrt(T * D)), as in torch.fft.

    Returns: [B, T, D] in x's dtype. Differentiable any number of times.

    Raises: ValueError for another rank, an empty T or D, or an unknown norm; TypeError for another dtype or layout;
    NotImplementedError where the backend that was asked for cannot run the call.
    """
    check_tensors(x=x)
    return mixing_op(x, norm, _dispatch.forced())


def fourier_mixing_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-12, norm: str = "backward"
) -> Tensor:
    """LayerNorm(x + Re(FFT2(x))) * weight + bias in one go: the first half of an FNet layer.

    Args:
        x: [B, T, D] in float32, bfloat16, float16 or float64.
        weight, bias: [D], on x's device. In float32 they go with any x; in another dtype than x's they promote, as in
            a plain torch expression.
        eps: added to the variance.
        norm: as in `fourier_mixing`.

    Returns: [B, T, D] in x's (promoted) dtype. Differentiable any number of times in x, weight and bias.

    Raises: as `fourier_mixing`, and ValueError for a weight or bias of another shape or on another device.
    """
    check_tensors(x=x, weight=weight, bias=bias)
    x, weight, bias = promote(x, weight, bias)
    keep = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad)
    keep = keep or forward_ad._current_level >= 0
    return layer_norm_op(x, weight, bias, eps, norm, keep, _dispatch.forced())[0]


def _scale(x: Tensor, norm: str) -> float:
    return 1.0 / math.sqrt(x.shape[1] * x.shape[2]) if norm == "ortho" else 1.0


# ---- backends, each named after its file: csrc/fourier_mixing/cpu.cpp, ./triton.py, ./reference.py


def _cpu_why_not(key: Key) -> str | None:
    if key.device != "cpu":
        return f"runs on the CPU; the input is on {key.device}"
    if torch.float64 in key.dtypes:
        return "computes in float32; the input is float64"
    return _native.missing


def _cpu_forward(x: Tensor, norm: str) -> Tensor:
    return torch.ops.encoders_fast_native.fourier_mixing.default(x, _scale(x, norm))


def _cpu_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: str, keep: bool) -> Any:
    native = torch.ops.encoders_fast_native.fourier_mixing_layer_norm.default
    return native(x, weight, bias, eps, _scale(x, norm), keep)


def _cpu_layer_norm_backward(dy: Tensor, weight: Tensor, normalized: Tensor, rstd: Tensor, norm: str) -> Any:
    native = torch.ops.encoders_fast_native.fourier_mixing_layer_norm_backward.default
    return native(dy, weight, normalized, rstd, _scale(dy, norm))


def _triton_forward(*args: Any) -> Any:
    from . import triton

    return triton.fourier_mixing(*args)


def _triton_layer_norm_why_not(key: Key) -> str | None:
    if key.widths[0] > 16384:
        return f"takes rows of up to 16384 elements; these have {key.widths[0]}"
    return _triton.why_not(key)


def _triton_layer_norm(*args: Any) -> Any:
    from . import triton

    return triton.fourier_mixing_layer_norm(*args)


def _triton_layer_norm_backward(*args: Any) -> Any:
    from . import triton

    return triton.fourier_mixing_layer_norm_backward(*args)


def _always(key: Key) -> None:
    return None


def _statics(x: Tensor, norm: str = "backward") -> tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]:
    check_tensors(x=x)
    check(x, norm)
    return x.device, (x.dtype,), (x.shape[2],)


def _statics_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-12, norm: str = "backward"
) -> tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]:
    check_tensors(x=x, weight=weight, bias=bias)
    x, weight, bias = promote(x, weight, bias)
    check_layer_norm(x, weight, bias, eps, norm)
    return x.device, (x.dtype, weight.dtype), (x.shape[2],)


_dispatch.define(
    "fourier_mixing",
    [
        Backend("cpu", _cpu_why_not, _cpu_forward),
        Backend("triton", _triton.why_not, _triton_forward),
        Backend("reference", _always, reference.fourier_mixing),
    ],
    _statics,
)
_dispatch.define(
    "fourier_mixing_layer_norm",
    [
        Backend("cpu", _cpu_why_not, _cpu_layer_norm, _cpu_layer_norm_backward),
        Backend("triton", _triton_layer_norm_why_not, _triton_layer_norm, _triton_layer_norm_backward),
        Backend(
            "reference", _always, reference.fourier_mixing_layer_norm, reference.fourier_mixing_layer_norm_backward
        ),
    ],
    _statics_layer_norm,
)
