"""The op `residual_layer_norm` as an nn.Module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _dropout
from ..ops import residual_layer_norm


class ResidualLayerNorm(nn.Module):
    """(y, s) of x and residual [..., D]: s = residual + dropout(x), y = LayerNorm(s) * weight + bias, in one op.

    Args:
        width: D.
        eps: added to the variance.
        dropout_p: probability of an element of x to be dropped in training, in [0, 1].

    Parameters: weight and bias, [D], ones and zeros at first, as in nn.LayerNorm.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _dropout.check_probability(dropout_p)
        self.width, self.eps, self.dropout_p = width, eps, dropout_p
        self.weight = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, residual: Tensor, rng_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`rng_state`, int64 [2], says what is dropped; without it, training with dropout draws one from torch's
        generator."""
        dropout_p = self.dropout_p if self.training else 0.0
        if dropout_p > 0 and rng_state is None:
            rng_state = _dropout.draw(x.device)
        return residual_layer_norm(x, residual, self.weight, self.bias, self.eps, dropout_p, rng_state)

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}, dropout_p={self.dropout_p}"
