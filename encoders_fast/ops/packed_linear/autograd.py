"""packed_linear where a gradient is needed: an autograd.Function over a backend's products.

With z = x W^T + bias, y = act(z) + residual and dz = dy act'(z):

    dx = dz W,   dW = dz^T x,   dbias = the sum of dz's rows,   dresidual = dy

It saves what torch's own operators would: x, the weights, and with an activation z (for relu alone y, which has z's
signs).
A gradient that is to be differentiated itself, or that transforms look at, is made of torch's operators instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._dispatch import Backend
from ..._op import _eager, _transformed
from . import reference
from .reference import Wanted

_batched = torch._C._functorch.is_legacy_batchedtensor  # by torch.autograd.grad(is_grads_batched=True)


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, row: Backend, activation: str, x: Tensor, residual: Tensor | None, count: int, *parameters: Any
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        weights, biases = parameters[:count], parameters[count:]
        keep = activation not in ("none", "relu") or (activation == "relu" and residual is not None)
        results = row.forward(x, weights, biases, activation, residual, True, keep)
        z = results[-1] if keep or activation == "relu" else None
        ctx.row, ctx.activation, ctx.keep = row, activation, keep
        # Of the bias only its part in z matters, and only to a second derivative: a change of it need not raise.
        ctx.biases = biases if activation != "none" else (None,) * count
        ctx.save_for_backward(x, z, *weights)
        return results[:count]

    @staticmethod
    def backward(ctx: Any, *dy: Tensor | None) -> tuple[Any, ...]:
        x, z, *weights = ctx.saved_tensors
        given = [i for i, part in enumerate(dy) if part is not None]
        count = len(weights)
        dparameters: list[Tensor | None] = [None] * (2 * count)
        if not given:
            return None, None, None, None, None, *dparameters
        needs = ctx.needs_input_grad[5:]
        wanted = Wanted(
            ctx.needs_input_grad[2],
            tuple(needs[i] for i in given),
            tuple(needs[count + i] for i in given),
        )
        dys = tuple(part for part in dy if part is not None)
        used = tuple(weights[i] for i in given)
        composed = torch.is_grad_enabled() or not _eager((x, *dys, *used)) or _transformed() or any(map(_batched, dys))
        rows = x.reshape(-1, x.shape[-1])
        if composed and z is not None:
            z = F.linear(x, used[0], ctx.biases[0])  # again, as a part of the graph
        dzs = (reference.activation_gradient(dys[0], z, ctx.activation),) if z is not None else dys
        dzs = tuple(dz.reshape(-1, dz.shape[-1]) for dz in dzs)
        if not (wanted.x or any(wanted.weights) or any(wanted.biases)):
            return None, None, None, dy[0], None, *dparameters
        function = reference.gradients if composed else ctx.row.backward
        dx, dweights, dbiases = function(dzs, rows, used, wanted)
        for i, dweight, dbias in zip(given, dweights, dbiases, strict=True):
            dparameters[i], dparameters[count + i] = dweight, dbias
        dresidual = dy[0] if ctx.needs_input_grad[3] else None
        return None, None, None if dx is None else dx.view(x.shape), dresidual, None, *dparameters


def differentiable(
    row: Backend,
    x: Tensor,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    activation: str,
    residual: Tensor | None,
) -> tuple[Tensor, ...]:
    return _PackedLinear.apply(row, activation, x, residual, len(weights), *weights, *biases)
