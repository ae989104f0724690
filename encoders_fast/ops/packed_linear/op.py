"""packed_linear: a linear layer with what follows it, on packed weights.

    y = act(x W^T + bias) + residual

x: [..., K], weight: [N, K], bias: [N], residual and y: [..., N], one dtype. float32 and bfloat16 on the CPU have
backends of their own, which keep sums in float32; `brgemm` rounds once, at the end. For few rows a weight is packed
once and kept, which takes as much memory again as the weight: `packing.packed_bytes` counts it. For many rows, and
wherever a gradient is needed, `brgemm` packs what it is about to use, each time, and keeps nothing.

`brgemm` computes gradients too, ./autograd.py. Under autocast, torch.compile, torch.func and other modes, and for
gradients on the other backends, the call is the plain composition of torch's operators, and is differentiated, traced
and cast like one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _dispatch
from ..._dispatch import Backend, Key
from ..._op import direct
from . import native, reference
from .autograd import differentiable
from .checks import check, fits

_NAME = "packed_linear"

# Fewer rows than these are torch's operators where a gradient is needed. Forward and backward together took, of torch's
# time at (M, 768, 768), in float32 1.03 at M = 128, 0.97 at 512 and 0.93 at 4096, in bfloat16 1.2, 1.08 and 0.98 (two
# cores of a Zen 4).
GRADIENT_ROWS = {torch.float32: 256, torch.bfloat16: 1024}


def packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none", residual: Tensor | None = None
) -> Tensor:
    """act(x W^T + bias) + residual.

    Args:
        x: [..., K] in float32, bfloat16, float16 or float64; strides are free, there may be no rows.
        weight: [N, K]. Where its packed form is kept, it is packed again after a change; see `packing` for what counts
            as one.
        bias: [N] or None.
        activation: "none", "relu", "gelu" (exact), "gelu_tanh" or "silu".
        residual: [..., N] or None.

    Returns: [..., N] in x's dtype, differentiable in every tensor.

    Raises: ValueError for shapes, devices or an activation that do not fit; TypeError for another dtype or layout, or
    several; NotImplementedError where the backend that was asked for cannot run the call.
    """
    return _run(x, (weight,), (bias,), activation, residual)[0]


def packed_linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None
) -> tuple[Tensor, ...]:
    """(x W^T + bias) for several weights [N_i, K] of one input, as query, key and value have them: one product.

    Returns a tuple of [..., N_i], each a tensor of its own.
    Raises: as `packed_linear`, and ValueError where there is no weight, or another number of biases.
    """
    biases = (None,) * len(weights) if biases is None else tuple(biases)
    if not weights or len(weights) != len(biases):
        raise ValueError(
            f"weights and biases must be as many, and at least one; they are {len(weights)} and {len(biases)}"
        )
    return _run(x, tuple(weights), biases, "none", None)


def _run(
    x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor | None, ...], activation: str, residual: Tensor | None
) -> tuple[Tensor, ...]:
    if len(weights) > 1 or not fits(x, weights[0], biases[0], activation, residual):
        check(x, weights, biases, activation, residual)
    tensors = tuple(t for t in (x, *weights, *biases, residual) if t is not None)
    if not _only_the_kernel_sees(x, weights, tensors):
        return reference.packed_linear(x, weights, biases, activation, residual)
    N = sum(weight.shape[0] for weight in weights)
    row = _dispatch.choose(_NAME, _dispatch.forced(), x.device, (x.dtype,), (x.shape[-1], N))
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return row.forward(x, weights, biases, activation, residual)
    if row.backward is None or x.numel() < GRADIENT_ROWS.get(x.dtype, 1) * x.shape[-1]:
        return reference.packed_linear(x, weights, biases, activation, residual)
    return differentiable(row, x, weights, biases, activation, residual)


def _only_the_kernel_sees(x: Tensor, weights: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> bool:
    """Whether nothing but the kernel can see this call, and a change of the weights would be seen."""
    return (
        direct(*tensors)
        and x.numel() > 0
        and not torch.is_autocast_enabled(x.device.type)
        and not any(weight.is_inference() for weight in weights)
    )


# ---- backends: ./native.py (csrc/packed_linear/cpu.cpp, torch's oneDNN), ./reference.py. One with gradients takes
# `training` and `keep` in its forward, as native.brgemm does; a call on the others is differentiated by torch.


def _always(key: Key) -> None:
    return None


def _statics(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none", residual: Tensor | None = None
) -> tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]:
    check(x, (weight,), (bias,), activation, residual)
    return x.device, (x.dtype,), (x.shape[-1], weight.shape[0])


_dispatch.define(
    _NAME,
    [
        Backend("brgemm", native.brgemm_why_not, native.brgemm, native.brgemm_gradients),
        Backend("mkldnn", native.mkldnn_why_not, native.mkldnn),
        Backend("reference", _always, reference.packed_linear),
    ],
    _statics,
)
