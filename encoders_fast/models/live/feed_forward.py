"""What FNet and BigBird share behind their mixing and attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..activations import fused_activation
from ..pre_layer_norm import add_and_normalize
from ..projections import activate, project
from .replacement import Replacement


class Intermediate(Replacement):
    """act(dense(h)): [B, T, D] -> [B, T, F]."""

    work = "packed_linear with the activation"
    dense: Any
    intermediate_act_fn: Any

    def forward(self, hidden_states: Tensor) -> Tensor:
        return activate(fused_activation(self.intermediate_act_fn), self.dense, hidden_states)


class AddAndNormalize(Replacement):
    """LayerNorm(dropout(dense(x)) + input_tensor)."""

    work = "packed_linear and residual_layer_norm"
    dense: Any
    dropout: Any
    LayerNorm: Any

    def bypassed(self) -> dict[str, type[nn.Module]]:
        return {"dropout": nn.Dropout, "LayerNorm": nn.LayerNorm}

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        if self.obstacle() is not None:
            return super().forward(hidden_states, input_tensor)
        x = project(self.dense, hidden_states)
        y: Any = add_and_normalize(x, input_tensor, self.dropout, self.LayerNorm, None)[1]
        return y
