"""What the two ops take: one clear sentence for everything else, before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import check_dtype, check_tensors
from .parameters import Parameters
from .products import ACTIVATIONS


def check_width(h: Tensor, parameters: Parameters) -> None:
    """Of bottleneck_input's h, where nothing else is in doubt."""
    width = parameters.matrices[3 if parameters.eps else 0].shape[1]
    if h.shape[-1] != width:
        raise ValueError(f"h {tuple(h.shape)} must have {width} columns, as many as the layer's weights")


def check_projection(name: str, projection: Sequence[Any], widths: tuple[int | None, int], normed: bool) -> int:
    """Raise unless `projection` is what `name` has to be, D_out and D_in being `widths` or anything. Returns D_out."""
    kinds = (4, 5) if normed else (2,)
    if not isinstance(projection, (tuple, list)) or len(projection) not in kinds:
        wanted = (
            "NormedProjection (weight, bias, norm_weight, norm_bias, eps)" if normed else "Projection (weight, bias)"
        )
        raise TypeError(f"{name} must be a {wanted}; it is {type(projection).__name__}")
    tensors = dict(zip(("weight", "bias", "norm_weight", "norm_bias"), projection[:4], strict=False))
    check_tensors(**{f"{name}'s {part}": tensor for part, tensor in tensors.items()})
    weight = tensors.pop("weight")
    if weight.dim() != 2 or weight.shape[1] != widths[1] or (widths[0] is not None and weight.shape[0] != widths[0]):
        wanted_out = "width" if widths[0] is None else widths[0]
        raise ValueError(f"{name}'s weight {tuple(weight.shape)} must be ({wanted_out}, {widths[1]})")
    for part, tensor in tensors.items():
        if tensor.shape != weight.shape[:1]:
            raise ValueError(f"{name}'s {part} {tuple(tensor.shape)} must be ({weight.shape[0]},)")
    if len(projection) == 5 and projection[4] is not None:
        check_eps(name, projection[4])
    return weight.shape[0]


def check_eps(name: str, eps: Any) -> None:
    if not isinstance(eps, (int, float)):
        raise TypeError(f"{name}'s eps must be a number or None; it is {eps!r}")
    if not eps >= 0:
        raise ValueError(f"{name}'s eps must not be negative; it is {eps}")


def check_activations(**tensors: Tensor) -> None:
    """[..., width] each, with the same leading dimensions."""
    check_tensors(**tensors)
    (first, leading), *_ = ((name, tensor.shape[:-1]) for name, tensor in tensors.items())
    for name, tensor in tensors.items():
        if tensor.dim() == 0 or tensor.shape[-1] == 0:
            raise ValueError(
                f"{name} must be [..., width], with a width of at least 1; its shape is {tuple(tensor.shape)}"
            )
        if tensor.shape[:-1] != leading:
            shapes = f"{first} {tuple(tensors[first].shape)} and {name} {tuple(tensor.shape)}"
            raise ValueError(f"{shapes} must have the same leading dimensions")


def check_activation(activation: Any) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; it is {activation!r}")


def _named(parameters: Parameters) -> Iterator[tuple[str, Tensor]]:
    for kind in ("matrices", "biases", "norms"):
        for i, tensor in enumerate(getattr(parameters, kind)):
            yield f"{kind}[{i}]", tensor


def check_devices_and_dtypes(parameters: Parameters, **activations: Tensor) -> None:
    (name, first), *_ = activations.items()
    for other, tensor in (*activations.items(), *_named(parameters)):
        check_dtype(other, tensor)
        if tensor.layout != torch.strided:
            raise TypeError(f"{other} must be a dense tensor; its layout is {tensor.layout}")
        if tensor.device != first.device:
            raise ValueError(f"{other} is on {tensor.device}, {name} is on {first.device}")
    if len({matrix.dtype for matrix in parameters.matrices}) > 1:
        found = ", ".join(sorted({str(matrix.dtype) for matrix in parameters.matrices}))
        raise TypeError(f"all weights of projections must have one dtype; they have {found}")
