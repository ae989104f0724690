"""The ONNX form of residual_layer_norm: torch.onnx.export (dynamo=True) takes it where it meets the op."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from . import autograd as _autograd  # noqa: F401  defines the torch op below
from . import reference


@register_decomposition(torch.ops.encoders_fast.residual_layer_norm.default)
def residual_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    rng_state: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return reference.residual_layer_norm(x, residual, weight, bias, eps, dropout_p, rng_state)
