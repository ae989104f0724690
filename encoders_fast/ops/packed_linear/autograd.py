"""Linear layers where a gradient is needed: an autograd.Function over a backend's products.

With y = x W^T + bias for each weight:

    dx = the sum of dy W,   dW = dy^T x,   dbias = the sum of dy's rows

It saves what torch's own operators would: x where a weight needs a gradient, the weights where x needs one. A gradient
that is to be differentiated itself, or that transforms look at, is made of torch's operators instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._dispatch import Backend
from ..._op import _eager, _transformed
from . import reference
from .reference import Wanted

_batched = torch._C._functorch.is_legacy_batchedtensor  # by torch.autograd.grad(is_grads_batched=True)


class _Linears(torch.autograd.Function):
    """x [M, K] -> [M, N] for each weight [N, K]."""

    @staticmethod
    def forward(ctx: Any, row: Backend, x: Tensor, count: int, *parameters: Any) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        weights, biases = parameters[:count], parameters[count:]
        ctx.row, ctx.count = row, count
        of_x, _, *of_parameters = ctx.needs_input_grad[1:]
        kept = x if any(of_parameters[:count]) else None
        ctx.save_for_backward(kept, *(weights if of_x else [None] * count))
        return row.forward(x, weights, biases, "none", None, True)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor | None) -> tuple[Any, ...]:
        x, *weights = ctx.saved_tensors
        given = [i for i, part in enumerate(dy) if part is not None]
        dparameters: list[Tensor | None] = [None] * (2 * ctx.count)
        of_x, _, *of_parameters = ctx.needs_input_grad[1:]
        wanted = Wanted(
            of_x,
            tuple(of_parameters[i] for i in given),
            tuple(of_parameters[ctx.count + i] for i in given),
        )
        if not given:
            return None, None, None, *dparameters
        dys = tuple(part for part in dy if part is not None)
        used = tuple(weights[i] for i in given)
        seen = tuple(t for t in (x, *dys, *used) if t is not None)
        composed = torch.is_grad_enabled() or not _eager(seen) or _transformed() or any(map(_batched, dys))
        function = reference.gradients if composed else ctx.row.backward
        dx, dweights, dbiases = function(dys, x, used, wanted)
        for i, dweight, dbias in zip(given, dweights, dbiases, strict=True):
            dparameters[i], dparameters[ctx.count + i] = dweight, dbias
        return None, dx, None, *dparameters


def differentiable(
    row: Backend,
    x: Tensor,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    activation: str,
    residual: Tensor | None,
) -> tuple[Tensor, ...]:
    """The activation and the residual are torch's operators. Results are given their shape out here: a Function's own
    views could not be changed in place."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    outputs = _Linears.apply(row, rows, len(weights), *weights, *biases)
    if x.dim() != 2:
        outputs = tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)
    outputs = tuple(map(reference.FUNCTIONS[activation], outputs))
    return outputs if residual is None else tuple(y + residual for y in outputs)
