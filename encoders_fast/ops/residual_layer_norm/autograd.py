"""The torch ops of residual_layer_norm: fakes, gradients and tangents, above the backends.

With n = (s - mean) * rstd and g = dy * weight, the gradient of y's part in s is rstd * (g - mean(g) - n * mean(g * n)).
Added to that of s itself it is the residual's gradient, and dropped and scaled as x was it is x's. The mask is computed
again from its state, so a graph holds s, the statistics of its rows, and nothing else of the size of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _dispatch
from ..._dropout import dropout
from ..._op import Derivatives, op
from .checks import check

_NAME = "residual_layer_norm"


def _forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    rng_state: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns y and s [..., D] in x's dtype, and mean and rstd [...] in float32 or float64."""
    check(x, residual, weight, bias, eps, dropout_p, rng_state)
    row = _dispatch.choose(_NAME, backend, x.device, (x.dtype, weight.dtype), (x.shape[-1],))
    if x.numel() == 0:
        return _fake(x, residual, weight, bias, eps, dropout_p, rng_state, backend)
    return row.forward(x, residual, weight, bias, eps, dropout_p, rng_state)


def _fake(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    rng_state: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(x, residual, weight, bias, eps, dropout_p, rng_state)
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean = x.new_empty(x.shape[:-1], dtype=statistics)
    return x.new_empty(x.shape), x.new_empty(x.shape), mean, torch.empty_like(mean)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor | None, ...]:
    _, _, weight, _, ctx.eps, ctx.dropout_p, rng_state, ctx.backend = inputs
    _, s, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)  # they never leave this file
    return s, weight, mean, rstd, rng_state


def _backward(ctx: Any, dy: Tensor | None, ds: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    s, weight, mean, rstd, rng_state = ctx.saved_tensors
    dx = dresidual = dweight = dbias = None
    if dy is None:
        dresidual = ds
    elif torch.is_grad_enabled():
        dresidual, dweight, dbias = _composed_backward(dy, ds, s, weight, ctx.eps)
    else:
        dx, dresidual, dweight, dbias = residual_layer_norm_backward_op(
            dy, ds, s, weight, mean, rstd, ctx.dropout_p, rng_state, ctx.backend
        )
        dx = dx if ctx.dropout_p > 0 else dresidual
    if dx is None and dresidual is not None:
        dx = dropout(dresidual, ctx.dropout_p, rng_state) if ctx.dropout_p > 0 else dresidual
    return dx, dresidual, dweight, dbias, None, None, None, None


def _composed_backward(
    dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients made of differentiable operators, for graphs of gradients. The statistics are computed again, so
    that they are part of the graph."""
    wide = torch.float64 if s.dtype == torch.float64 else torch.float32
    rows, gradient = s.to(wide), dy.to(wide)
    centred = rows - rows.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    n, g = centred * rstd, gradient * weight
    dresidual = rstd * (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True))
    if ds is not None:
        dresidual = dresidual + ds
    leading = tuple(range(s.dim() - 1))
    dweight = (gradient * n).sum(leading) if leading else gradient * n
    dbias = gradient.sum(leading) if leading else gradient
    return dresidual.to(s.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)


def _jvp(
    ctx: Any,
    dx: Tensor | None,
    dresidual: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, None, None]:
    s, weight, mean, rstd, rng_state = ctx.saved_tensors
    ds = torch.zeros_like(s) if dresidual is None else dresidual
    if dx is not None:
        ds = ds + (dropout(dx, ctx.dropout_p, rng_state) if ctx.dropout_p > 0 else dx)
    wide, rstd = ds.to(rstd.dtype), rstd[..., None]
    n = (s.to(rstd.dtype) - mean[..., None]) * rstd
    dy = rstd * (wide - wide.mean(-1, keepdim=True) - n * (wide * n).mean(-1, keepdim=True)) * weight
    if dweight is not None:
        dy = dy + n * dweight
    if dbias is not None:
        dy = dy + dbias
    return dy.to(s.dtype), ds.to(s.dtype), None, None


def _backward_forward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout_p: float,
    rng_state: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x, residual, weight and bias. Without dropout the first is empty: it is the second."""
    row = _dispatch.choose(_NAME, backend, s.device, (s.dtype, weight.dtype), (s.shape[-1],))
    if s.numel() == 0:
        dx = torch.empty_like(s) if dropout_p > 0 else s.new_empty(0)
        return dx, torch.empty_like(s), torch.zeros_like(weight), torch.zeros_like(weight)
    assert row.backward is not None  # register_backend sees to it
    return row.backward(dy, ds, s, weight, mean, rstd, dropout_p, rng_state)


def _backward_fake(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout_p: float,
    rng_state: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(s) if dropout_p > 0 else s.new_empty(0)
    return dx, torch.empty_like(s), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


residual_layer_norm_op = op(
    "residual_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, float dropout_p,"
    " Tensor? rng_state, str? backend) -> (Tensor y, Tensor s, Tensor mean, Tensor rstd)",
    forward=_forward,
    fake=_fake,
    derivatives=Derivatives(save=_save, backward=_backward, jvp=_jvp),
)
residual_layer_norm_backward_op = op(
    "residual_layer_norm_backward(Tensor dy, Tensor? ds, Tensor s, Tensor weight, Tensor mean, Tensor rstd,"
    " float dropout_p, Tensor? rng_state, str? backend)"
    " -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)",
    forward=_backward_forward,
    fake=_backward_fake,
)
