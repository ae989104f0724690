"""The torch ops of fourier_mixing: their fakes, gradients, tangents and batching, above the backends.

M below is y = M(x), the transform. It is linear and its matrix symmetric: its gradient, its tangent and all that follow
are M again. LayerNorm keeps `normalized` n and `rstd` r of its sum s = x + M(x); with g = dy * weight,

    ds = r * (g - mean(g) - n * mean(g * n)),   dx = ds + M(ds)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _dispatch
from ..._op import Derivatives, one_by_one, op
from .checks import check, check_layer_norm

# ---- fourier_mixing


def _mix_forward(x: Tensor, norm: str, backend: str | None) -> Tensor:
    check(x, norm)
    row = _dispatch.choose("fourier_mixing", backend, x.device, (x.dtype,), (x.shape[2],))
    return row.forward(x, norm) if x.shape[0] else x.new_empty(x.shape)


def _mix_fake(x: Tensor, norm: str, backend: str | None) -> Tensor:
    check(x, norm)
    return x.new_empty(x.shape)


def _mix_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
    _, ctx.norm, ctx.backend = inputs
    return ()


def _mix_backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, None, None]:
    return (None if dy is None else mixing_op(dy, ctx.norm, ctx.backend)), None, None


def _mix_jvp(ctx: Any, dx: Tensor | None, *_: Any) -> Tensor | None:
    return None if dx is None else mixing_op(dx, ctx.norm, ctx.backend)


def _mix_vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, norm: str, backend: str | None) -> Any:
    x = x.movedim(in_dims[0], 0)
    return mixing_op(x.flatten(0, 1), norm, backend).unflatten(0, x.shape[:2]), 0


mixing_op = op(
    "fourier_mixing(Tensor x, str norm, str? backend) -> Tensor",
    forward=_mix_forward,
    fake=_mix_fake,
    derivatives=Derivatives(save=_mix_save, backward=_mix_backward, jvp=_mix_jvp, vmap=_mix_vmap),
)


# ---- fourier_mixing_layer_norm


def _layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: str, keep: bool, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y and normalized [B, T, D] in x's dtype and rstd [B, T], the last two empty without `keep`."""
    check_layer_norm(x, weight, bias, eps, norm)
    row = _dispatch.choose("fourier_mixing_layer_norm", backend, x.device, (x.dtype, weight.dtype), (x.shape[2],))
    if x.shape[0] == 0:
        return _layer_norm_fake(x, weight, bias, eps, norm, keep, backend)
    return row.forward(x, weight, bias, eps, norm, keep)


def _layer_norm_fake(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: str, keep: bool, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    check_layer_norm(x, weight, bias, eps, norm)
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
        gradients = layer_norm_backward_op(dy, weight, normalized, rstd, ctx.norm, ctx.backend)
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
    dx = (ds + mixing_op(ds, norm, backend)).to(normalized.dtype)
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
        ds = ds + mixing_op(ds, ctx.norm, ctx.backend)
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
    assert row.backward is not None  # register_backend sees to it
    return row.backward(dy, weight, normalized, rstd, norm)


def _backward_fake(
    dy: Tensor, weight: Tensor, normalized: Tensor, rstd: Tensor, norm: str, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(normalized), torch.empty_like(weight), torch.empty_like(weight)


def _layer_norm_vmap(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor, *rest: Any
) -> tuple[tuple[Tensor, ...], Any]:
    if in_dims[:3] == (in_dims[0], None, None):
        x = x.movedim(in_dims[0], 0)
        y, *kept = layer_norm_op(x.flatten(0, 1), weight, bias, *rest)
        batched = [t.unflatten(0, x.shape[:2]) if t.numel() else t.expand(info.batch_size, 0) for t in (y, *kept)]
        return tuple(batched), 0
    # Each with a weight or bias of its own.
    return one_by_one(layer_norm_op, info, in_dims, x, weight, bias, *rest)


layer_norm_op = op(
    "fourier_mixing_layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, str norm, bool keep, str? backend)"
    " -> (Tensor y, Tensor normalized, Tensor rstd)",
    forward=_layer_norm_forward,
    fake=_layer_norm_fake,
    derivatives=Derivatives(
        save=_layer_norm_save, backward=_layer_norm_backward, jvp=_layer_norm_jvp, vmap=_layer_norm_vmap
    ),
)
layer_norm_backward_op = op(
    "fourier_mixing_layer_norm_backward(Tensor dy, Tensor weight, Tensor normalized, Tensor rstd, str norm,"
    " str? backend) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    forward=_backward_forward,
    fake=_backward_fake,
)
