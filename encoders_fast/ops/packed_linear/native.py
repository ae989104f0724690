"""The two backends that pack: `brgemm`, csrc/packed_linear/cpu.cpp, and `mkldnn`, torch's own oneDNN operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _native
from ..._dispatch import Key
from . import reference
from .checks import ACTIVATIONS
from .packing import packed
from .reference import Wanted

_ops = torch.ops.encoders_fast_native
_mkldnn = torch.ops.mkldnn

# From so many rows on panels are packed as they are used, and nothing is kept. That takes 2 to 4 per cent of the time
# at 512 rows, 0 to 1 at 4096, 10 at 128 (K and N of 768 and 3072, two cores of a Zen 4).
MANY_ROWS = 512
# Nor of larger weights, in elements: vocabularies, whose single rows change, and those of XLM-RoBERTa-XL.
LARGE = 1 << 22


def _neither(key: Key) -> str | None:
    if key.device != "cpu":
        return f"runs on the CPU; the input is on {key.device}"
    if key.dtypes[0] not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16; the input is {key.dtypes[0]}"
    return None


def brgemm_why_not(key: Key) -> str | None:
    why = _neither(key) or _native.missing
    if why is not None:
        return why
    half = key.dtypes[0] == torch.bfloat16
    if half and key.widths[0] % 2:
        return f"multiplies pairs in bfloat16; the width of x is odd: {key.widths[0]}"
    return _ops.packed_linear_missing(half) or None


def mkldnn_why_not(key: Key) -> str | None:
    why = _neither(key)
    if why is not None:
        return why
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return "this torch has no oneDNN, or it is switched off"
    if not all(hasattr(_mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return "this torch does not have oneDNN's operators for packed weights"
    if key.dtypes[0] == torch.bfloat16 and not _mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 on this CPU"
    if key.dtypes[0] == torch.float32 and key.widths[0] > 1024:
        return f"sums more than 1024 terms in float32 at twice F.linear's error and more; x has {key.widths[0]}"
    return None


def brgemm(
    x: Tensor,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    activation: str,
    residual: Tensor | None,
    training: bool = False,
) -> tuple[Tensor, ...]:
    """Nothing is stored in training: weights change."""
    shape = x.shape[:-1]
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    on_the_way = training or rows.shape[0] >= MANY_ROWS or sum(map(Tensor.numel, weights)) > LARGE
    outputs = _ops.packed_linear.default(
        rows,
        None if on_the_way else packed("brgemm", weights, _ops.packed_linear_pack.default),
        weights,
        biases,
        ACTIVATIONS.index(activation),
        residual if residual is None or x.dim() == 2 else residual.reshape(-1, residual.shape[-1]),
    )
    return tuple(outputs) if x.dim() == 2 else tuple(y.view(*shape, y.shape[-1]) for y in outputs)


def brgemm_gradients(
    dy: tuple[Tensor, ...], x: Tensor | None, weights: tuple[Any, ...], wanted: Wanted
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """As reference.gradients."""
    dx = None
    dweights: list[Tensor | None] = [None] * len(dy)
    dbiases: list[Tensor | None] = [None] * len(dy)
    if wanted.x:
        even = dy[0].dtype == torch.float32 or not any(part.shape[1] % 2 for part in dy)
        dx = _ops.packed_linear_input_gradient.default(dy, weights) if even else reference.input_gradient(dy, weights)
    which = [i for i, one in enumerate(wanted.weights) if one]
    if which:
        with_bias = any(wanted.biases[i] for i in which)
        results = _ops.packed_linear_weight_gradients.default([dy[i] for i in which], x, with_bias)
        for place, i in enumerate(which):
            dweights[i] = results[place]
            if wanted.biases[i]:
                dbiases[i] = results[len(which) + place]
    for i, one in enumerate(wanted.biases):
        if one and dbiases[i] is None:
            dbiases[i] = dy[i].sum(0)
    return dx, dweights, dbiases


_POINTWISE: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("none", [], ""),  # oneDNN's makes 0 of a NaN
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
    "silu": ("swish", [], ""),
}


def _reordered(weights: Sequence[Tensor]) -> Tensor:
    return _mkldnn._reorder_linear_weight(weights[0])


def mkldnn(
    x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor | None, ...], activation: str, residual: Tensor | None
) -> tuple[Tensor, ...]:
    rows = x.reshape(-1, x.shape[-1])
    outputs = []
    for weight, bias in zip(weights, biases, strict=True):
        packed_weight = packed("mkldnn", (weight,), _reordered)
        y = _mkldnn._linear_pointwise(rows, packed_weight, bias, *_POINTWISE[activation])
        if activation == "relu":
            y.relu_()
        y = y.view(*x.shape[:-1], y.shape[-1])
        outputs.append(y if residual is None else y.add_(residual))
    return tuple(outputs)
