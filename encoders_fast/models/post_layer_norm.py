"""How a sublayer ends where the LayerNorm is behind the sum, as in FNet and BigBird."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .observers import is_layer_norm, unobserved
from .pre_layer_norm import add_and_normalize
from .projections import project


class PostLayerNormOutput(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual), x [B, T, width] and the residual [B, T, D].

    The sum and the LayerNorm are one call of the op residual_layer_norm.
    """

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor, rng_state: Tensor | None = None) -> Tensor:
        """`rng_state`, int64 [2], is what dropout draws from; without it there is a new one where it is needed."""
        return self.add(project(self.dense, x), residual, rng_state)

    def add(self, x: Tensor, residual: Tensor, rng_state: Tensor | None) -> Tensor:
        norm = self.LayerNorm
        if not is_layer_norm(norm) or not unobserved(norm, self.dropout):
            return norm(self.dropout(x) + residual)
        y: Any = add_and_normalize(x, residual, self.dropout, norm, rng_state)[1]
        return y
