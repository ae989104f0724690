"""How bottleneck_input and bottleneck_ffn take their parameters, and how the torch ops below them do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Projection(NamedTuple):
    """W x + b."""

    weight: Tensor
    """[D_out, D_in]"""
    bias: Tensor
    """[D_out]"""


class NormedProjection(NamedTuple):
    """N(W x + b), or N(W x + b + residual)."""

    weight: Tensor
    """[D_out, D_in]"""
    bias: Tensor
    """[D_out]"""
    norm_weight: Tensor
    """[D_out]"""
    norm_bias: Tensor
    """[D_out]"""
    eps: float | None = None
    """None: N(x) = x * norm_weight + norm_bias. A number: LayerNorm, with this added to the variance."""


class Parameters(NamedTuple):
    """All of one op's parameters, as the torch ops and the backends get them."""

    matrices: list[Tensor]
    biases: list[Tensor]
    """One for each matrix."""
    norms: list[Tensor]
    """Two for each norm: weight and bias."""
    eps: list[float]
    """One for each norm, negative for one that only scales and shifts."""


class Sequences(NamedTuple):
    """What the attention between the two ops is of, where all layers are one call."""

    heads: int
    scale: float
    """Of the scores."""
    lengths: list[int]
    """In tokens, at least one each. The sequences lie end to end in h."""
    keys: Tensor | None = None
    """bool [tokens of all sequences], contiguous, False where a key is hidden; None where none is."""
    head_factors: Tensor | None = None
    """float32 [layers, sequences, heads], contiguous: of the heads' outputs."""


def pack(*projections: Sequence[Tensor | float | None]) -> Parameters:
    """Projections and NormedProjections, or plain tuples like them, in the order in which they come."""
    parameters = Parameters([], [], [], [])
    for weight, bias, *norm in projections:
        parameters.matrices.append(weight)  # type: ignore[arg-type]
        parameters.biases.append(bias)  # type: ignore[arg-type]
        if norm:
            norm_weight, norm_bias, *eps = norm
            parameters.norms.extend((norm_weight, norm_bias))  # type: ignore[arg-type]
            parameters.eps.append(-1.0 if not eps or eps[0] is None else float(eps[0]))
    return parameters


def of_layers(tensors: list[Tensor], count: int) -> list[list[Tensor]]:
    """A list of `count` layers' tensors, cut into theirs."""
    each = len(tensors) // count
    return [tensors[i * each : (i + 1) * each] for i in range(count)]


def first_layer(parameters: Parameters, count: int) -> Parameters:
    """Of those of `count` layers, with the eps of one."""
    matrices, biases, norms = (tensors[: len(tensors) // count] for tensors in parameters[:3])
    return Parameters(matrices, biases, norms, parameters.eps)


def in_autocast(parameters: Parameters, device: torch.device) -> Parameters:
    """Under autocast, matrices are in its dtype, as those of torch's own products are."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return parameters
    dtype = torch.get_autocast_dtype(device.type)
    return parameters._replace(matrices=[m if m.dtype == torch.float64 else m.to(dtype) for m in parameters.matrices])


def promote(activations: Sequence[Tensor], parameters: Parameters) -> tuple[list[Tensor], Parameters]:
    """Activations in the dtype that they have together with all parameters, and biases and norms in one dtype."""
    vectors = parameters.biases + parameters.norms
    if len({tensor.dtype for tensor in (*activations, *parameters.matrices, *vectors)}) == 1:
        return list(activations), parameters
    dtype = activations[0].dtype
    for tensor in (*activations[1:], *parameters.matrices, *vectors):
        dtype = torch.promote_types(dtype, tensor.dtype)
    if len({tensor.dtype for tensor in vectors}) > 1:
        biases, norms = ([tensor.to(dtype) for tensor in part] for part in (parameters.biases, parameters.norms))
        parameters = parameters._replace(biases=biases, norms=norms)
    return [tensor.to(dtype) for tensor in activations], parameters
