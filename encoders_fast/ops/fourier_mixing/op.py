"""fourier_mixing: FNet's token mixing, the real part of a Fourier transform over tokens and width.

    y = Re(FFT_tokens(FFT_width(x)))                                   fourier_mixing
    y = LayerNorm(x + Re(FFT_tokens(FFT_width(x)))) * weight + bias    fourier_mixing_layer_norm

x, y: [B, T, D], one dtype, any T >= 1 and D >= 1.  weight, bias: [D].  Float32 inside whatever the storage type
(float64 for float64), and the sum before the LayerNorm is never rounded: with a mean of 0.02 it overflows float16 at
T = 4096, D = 768. The map is linear and its matrix symmetric, so its gradient is the map itself.

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
from ..._op import op
from . import reference

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fourier_mixing(x: Tensor, norm: str = "backward") -> Tensor:
    """Re(FFT2(x)) over the tokens and the width of x.

    Args:
        x: [B, T, D] in float32, bfloat16, float16 or float64; strides are free, B may be 0.
        norm: "backward" (no scaling, as FNet) or "ortho" (divided by sqrt(T * D)), as in torch.fft.

    Returns: [B, T, D] in x's dtype. Differentiable any number of times.

    Raises: ValueError for another rank, an empty T or D, or an unknown norm; TypeError for another dtype or layout;
    NotImplementedError where the backend that was asked for cannot run the call.
    """
    return _fourier_mixing(x, norm, _dispatch.forced())


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
    x, weight, bias = _promote(x, weight, bias)
    keep = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad)
    keep = keep or forward_ad._current_level >= 0
    return _fourier_mixing_layer_norm(x, weight, bias, eps, norm, keep, _dispatch.forced())[0]


def _promote(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give x the dtype of the result, and weight and bias one dtype: x's or float32."""
    if x.dtype == weight.dtype == bias.dtype:
        return x, weight, bias
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        _check_dtype(name, tensor)
    dtype = x.dtype
    for parameter in (weight, bias):
        if parameter.dtype != torch.float32:
            dtype = torch.promote_types(dtype, parameter.dtype)
    parameter_dtype = torch.promote_types(weight.dtype, bias.dtype)
    if parameter_dtype != torch.float32:
        parameter_dtype = dtype
    return x.to(dtype), weight.to(parameter_dtype), bias.to(parameter_dtype)


def _check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64; it is {tensor.dtype}")


def _check(x: Tensor, norm: str) -> None:
    if x.dim() != 3:
        raise ValueError(f"x must be [batch, tokens, width]; its shape is {tuple(x.shape)}")
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise ValueError(f"x needs at least one token and a width of at least 1; its shape is {tuple(x.shape)}")
    _check_dtype("x", x)
    if x.layout != torch.strided:
        raise TypeError(f"x must be a dense tensor; its layout is {x.layout}")
    if norm not in ("backward", "ortho"):
        raise ValueError(f'norm must be "backward" or "ortho"; it is {norm!r}')


def _check_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: str) -> None:
    _check(x, norm)
    for name, parameter in (("weight", weight), ("bias", bias)):
        _check_dtype(name, parameter)
        if parameter.dim() != 1 or parameter.shape[0] != x.shape[2]:
            raise ValueError(f"{name} {tuple(parameter.shape)} must be ({x.shape[2]},), the width of x {tuple(x.shape)}")
        if parameter.device != x.device:
            raise ValueError(f"{name} is on {parameter.device}, x is on {x.device}")
    if not eps >= 0:
        raise ValueError(f"eps must not be negative; it is {eps}")


def _scale(x: Tensor, norm: str) -> float:
    return 1.0 / math.sqrt(x.shape[1] * x.shape[2]) if norm == "ortho" else 1.0


# ---- backends, each named after its file: csrc/fourier_mixing/cpu.cpp, ./reference.py --------------------------------


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


def _always(key: Key) -> None:
    return None


def _statics(x: Tensor, *_: Any, **__: Any) -> tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]:
    return x.device, (x.dtype,), (x.shape[-1],)


def _statics_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *_: Any, **__: Any
) -> tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]:
    x, weight, bias = _promote(x, weight, bias)
    return x.device, (x.dtype, weight.dtype), (x.shape[-1],)


_dispatch.define(
    "fourier_mixing",
    [Backend("cpu", _cpu_why_not, _cpu_forward), Backend("reference", _always, reference.fourier_mixing)],
    _statics,
)
_dispatch.define(
    "fourier_mixing_layer_norm",
    [
        Backend("cpu", _cpu_why_not, _cpu_layer_norm, _cpu_layer_norm_backward),
        Backend(
            "reference", _always, reference.fourier_mixing_layer_norm, reference.fourier_mixing_layer_norm_backward
        ),
    ],
    _statics_layer_norm,
)


# ---- fourier_mixing ---------------------------------------------------------------------------------------------------


def _mix_forward(x: Tensor, norm: str, backend: str | None) -> Tensor:
    _check(x, norm)
    row = _dispatch.choose("fourier_mixing", backend, x.device, (x.dtype,), (x.shape[2],))
    return row.forward(x, norm) if x.shape[0] else x.new_empty(x.shape)


def _mix_fake(x: Tensor, norm: str, backend: str | None) -> Tensor:
    _check(x, norm)
    return x.new_empty(x.shape)


def _mix_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
    _, ctx.norm, ctx.backend = inputs
    return ()


def _mix_backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, None, None]:
    return (None if dy is None else _fourier_mixing(dy, ctx.norm, ctx.backend)), None, None


def _mix_jvp(ctx: Any, dx: Tensor | None, *_: Any) -> Tensor | None:
    return None if dx is None else _fourier_mixing(dx, ctx.norm, ctx.backend)


def _mix_vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, norm: str, backend: str | None) -> Any:
    x = x.movedim(in_dims[0], 0)
    y = _fourier_mixing(x.flatten(0, 1), norm, backend)
    return y.unflatten(0, x.shape[:2]), 0


_fourier_mixing = op(
    "fourier_mixing(Tensor x, str norm, str? backend) -> Tensor",
    forward=_mix_forward,
    fake=_mix_fake,
    save=_mix_save,
    backward=_mix_backward,
    vmap=_mix_vmap,
    jvp=_mix_jvp,
)


# ---- fourier_mixing_layer_norm ----------------------------------------------------------------------------------------


def _layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: str, keep: bool, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (y, normalized, rstd): [B, T, D], [B, T, D] in x's dtype and [B, T]; the last two empty without `keep`."""
    _check_layer_norm(x, weight, bias, eps, norm)
    row = _dispatch.choose("fourier_mixing_layer_norm", backend, x.device, (x.dtype, weight.dtype), (x.shape[2],))
    if x.shape[0] == 0:
        return _layer_norm_fake(x, weight, bias, eps, norm, keep, backend)
    return row.forward(x, weight, bias, eps, norm, keep)


def _layer_norm_fake(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: str, keep: bool, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    _check_layer_norm(x, weight, bias, eps, norm)
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.shape[:2] if keep else (0,)
    return x.new_empty(x.shape), x.new_empty(x.shape if keep else (0,)), x.new_empty(rows, dtype=statistics)


def _layer_norm_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
    _, weight, _, _, ctx.norm, keep, ctx.backend = inputs
    return (weight, *output[1:]) if keep else ()


def _layer_norm_backward(ctx: Any, dy: Any, dnormalized: Any, drstd: Any) -> tuple[Tensor | None, ...]:
    if dy is None and dnormalized is None and drstd is None:
        return (None,) * 7
    weight, normalized, rstd = ctx.saved_tensors
    if torch.is_grad_enabled() or dnormalized is not None or drstd is not None:
        gradients = _composed_backward(dy, dnormalized, drstd, weight, normalized, rstd, ctx.norm, ctx.backend)
    else:
        gradients = _fourier_mixing_layer_norm_backward(dy, weight, normalized, rstd, ctx.norm, ctx.backend)
    return *gradients, None, None, None, None


def _composed_backward(
    dy: Tensor | None,
    dnormalized: Tensor | None,
    drstd: Tensor | None,
    weight: Tensor,
    normalized: Tensor,
    rstd: Tensor,
    norm: str,
    backend: str | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients made of differentiable operators, for graphs of gradients. `dnormalized` and `drstd` arrive from
    such graphs only: `normalized` and `rstd` never leave this file otherwise."""
    wide = rstd.dtype
    n, rstd = normalized.to(wide), rstd[..., None]
    g = torch.zeros_like(n) if dy is None else dy.to(wide) * weight.to(wide)
    if dnormalized is not None:
        g = g + dnormalized.to(wide)
    ds = rstd * (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True))
    if drstd is not None:
        ds = ds - drstd[..., None] * rstd.square() * n / n.shape[-1]
    dx = (ds + _fourier_mixing(ds, norm, backend)).to(normalized.dtype)
    if dy is None:
        return dx, None, None
    dweight = (dy.to(wide) * n).sum((0, 1)).to(weight.dtype)
    return dx, dweight, dy.to(wide).sum((0, 1)).to(weight.dtype)


def _layer_norm_jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: Any) -> Any:
    weight, normalized, rstd = ctx.saved_tensors
    n, rstd = normalized.to(rstd.dtype), rstd[..., None]
    dn, drstd = torch.zeros_like(n), torch.zeros_like(rstd)
    if dx is not None:
        ds = dx.to(n.dtype)
        ds = ds + _fourier_mixing(ds, ctx.norm, ctx.backend)
        slope = (ds * n).mean(-1, keepdim=True)
        dn, drstd = rstd * (ds - ds.mean(-1, keepdim=True) - n * slope), -rstd.square() * slope
    dy = dn * weight
    if dweight is not None:
        dy = dy + n * dweight
    if dbias is not None:
        dy = dy + dbias
    return dy.to(normalized.dtype), dn.to(normalized.dtype), drstd.squeeze(-1)


def _backward_forward(
    dy: Tensor, weight: Tensor, normalized: Tensor, rstd: Tensor, norm: str, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    row = _dispatch.choose("fourier_mixing_layer_norm", backend, dy.device, (dy.dtype, weight.dtype), (dy.shape[2],))
    if dy.shape[0] == 0:
        return torch.empty_like(normalized), torch.zeros_like(weight), torch.zeros_like(weight)
    assert row.backward is not None
    return row.backward(dy, weight, normalized, rstd, norm)


def _backward_fake(
    dy: Tensor, weight: Tensor, normalized: Tensor, rstd: Tensor, norm: str, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(normalized), torch.empty_like(weight), torch.empty_like(weight)


def _layer_norm_vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    norm: str,
    keep: bool,
    backend: str | None,
) -> Any:
    if in_dims[1] is None and in_dims[2] is None and in_dims[0] is not None:
        x = x.movedim(in_dims[0], 0)
        outputs = _fourier_mixing_layer_norm(x.flatten(0, 1), weight, bias, eps, norm, keep, backend)
        return tuple(t.unflatten(0, x.shape[:2]) if t.numel() else t.expand(info.batch_size, 0) for t in outputs), 0
    dims = [None if dim is None else dim for dim in in_dims[:3]]
    pick = [
        [t if dim is None else t.select(dim, i) for t, dim in zip((x, weight, bias), dims, strict=True)]
        for i in range(info.batch_size)
    ]
    outputs = [_fourier_mixing_layer_norm(*tensors, eps, norm, keep, backend) for tensors in pick]
    return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True)), 0


_fourier_mixing_layer_norm = op(
    "fourier_mixing_layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, str norm, bool keep, str? backend)"
    " -> (Tensor y, Tensor normalized, Tensor rstd)",
    forward=_layer_norm_forward,
    fake=_layer_norm_fake,
    save=_layer_norm_save,
    backward=_layer_norm_backward,
    vmap=_layer_norm_vmap,
    jvp=_layer_norm_jvp,
)
_fourier_mixing_layer_norm_backward = op(
    "fourier_mixing_layer_norm_backward(Tensor dy, Tensor weight, Tensor normalized, Tensor rstd, str norm,"
    " str? backend) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    forward=_backward_forward,
    fake=_backward_fake,
)
