"""The two backends that pack: `brgemm`, csrc/packed_linear/cpu.cpp, and `mkldnn`, torch's own oneDNN operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _native
from ..._dispatch import Key
from .checks import ACTIVATIONS
from .packing import packed

_ops = torch.ops.encoders_fast_native
_mkldnn = torch.ops.mkldnn


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


def _together(biases: tuple[Tensor | None, ...], weights: tuple[Tensor, ...]) -> Tensor | None:
    if len(biases) == 1 or all(bias is None for bias in biases):
        return biases[0]
    parts = zip(biases, weights, strict=True)
    return torch.cat([w.new_zeros(w.shape[0]) if b is None else b for b, w in parts])


def _split(y: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (y,) if len(weights) == 1 else y.split([w.shape[0] for w in weights], -1)


def brgemm(
    x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor | None, ...], activation: str, residual: Tensor | None
) -> tuple[Tensor, ...]:
    panels = packed("brgemm", weights, _ops.packed_linear_pack.default)
    N = sum(weight.shape[0] for weight in weights)
    y = _ops.packed_linear.default(
        x.reshape(-1, x.shape[-1]),
        panels,
        _together(biases, weights),
        N,
        ACTIVATIONS.index(activation),
        None if residual is None else residual.reshape(-1, N),
    )
    return _split(y.view(*x.shape[:-1], N), weights)


_POINTWISE: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("none", [], ""),  # oneDNN's makes 0 of a NaN
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
    "silu": ("swish", [], ""),
}


def mkldnn(
    x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor | None, ...], activation: str, residual: Tensor | None
) -> tuple[Tensor, ...]:
    weight = packed("mkldnn", weights, _mkldnn._reorder_linear_weight)
    rows = x.reshape(-1, x.shape[-1])
    y = _mkldnn._linear_pointwise(rows, weight, _together(biases, weights), *_POINTWISE[activation])
    if activation == "relu":
        y.relu_()
    y = y.view(*x.shape[:-1], y.shape[-1])
    return _split(y if residual is None else y.add_(residual), weights)
