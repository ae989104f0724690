"""Heads can be taken out of a model's attention for good.

Source: Are Sixteen Heads Really Better than One? (Michel et al., 2019).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel as _Base
else:
    _Base = object


class PrunesHeads(_Base):
    """For a PreTrainedModel whose layers are at `encoder.layer`, each with an `attention` of the common structure:
    `self` holds query, key, value and `kept_heads`, `output` the `dense` that follows."""

    def prune_heads(self, heads_to_prune: dict[int, list[int]]) -> None:
        """Remove heads: layer -> which ones, counted as before any was removed. The configuration keeps account of
        them, so that a saved model loads again.

        Raises: ValueError for layers or heads that are not there, and where a layer would have no head left.
        """
        heads_to_prune = {int(layer): [int(head) for head in heads] for layer, heads in heads_to_prune.items()}
        backbone: Any = self.base_model
        layers = backbone.encoder.layer
        for layer, heads in heads_to_prune.items():
            if not 0 <= layer < len(layers):
                raise ValueError(f"there is no layer {layer} to prune; the model has {len(layers)}")
            check_heads(layers[layer].attention.self, layer, heads, self.config.num_attention_heads)
        pruned = {int(layer): set(heads) for layer, heads in (self._pruned() or {}).items()}
        for layer, heads in heads_to_prune.items():
            prune(layers[layer].attention, set(heads))
            pruned.setdefault(layer, set()).update(heads)
        self.config.pruned_heads = {layer: sorted(heads) for layer, heads in pruned.items()}

    def prune_as_configured(self) -> None:
        """For the backbone's constructor: what was pruned before the model was saved."""
        pruned = self._pruned()
        if pruned:
            self.prune_heads(pruned)

    def _pruned(self) -> dict[int, list[int]] | None:
        return getattr(self.config, "pruned_heads", None)  # transformers' own configurations have none


def check_heads(attention: Any, layer: int, heads: list[int], all_heads: int) -> None:
    if not all(0 <= head < all_heads for head in heads):
        raise ValueError(f"layer {layer} has the heads 0 to {all_heads - 1}; {list(heads)} cannot be pruned")
    if set(attention.kept_heads) <= set(heads):
        raise ValueError(f"layer {layer} would have no head left: it has {attention.kept_heads}, and all are to go")


@torch.no_grad()
def prune(attention: Any, heads: set[int]) -> None:
    """Take `heads`, those of them that are still there, out of one layer's attention."""
    inner = attention.self
    kept = [(i, head) for i, head in enumerate(inner.kept_heads) if head not in heads]
    columns = torch.arange(inner.query.out_features).view(len(inner.kept_heads), -1)[[i for i, _ in kept]].flatten()
    for linear in (inner.query, inner.key, inner.value):
        _keep(linear, columns, 0)
    _keep(attention.output.dense, columns, 1)
    inner.kept_heads = [head for _, head in kept]


def _keep(linear: nn.Linear, columns: Tensor, dim: int) -> None:
    columns = columns.to(linear.weight.device)
    linear.weight = _part(linear.weight, columns, dim)
    if dim == 0:
        linear.out_features = len(columns)
        if linear.bias is not None:
            linear.bias = _part(linear.bias, columns, 0)
    else:
        linear.in_features = len(columns)


def _part(parameter: Tensor, columns: Tensor, dim: int) -> nn.Parameter:
    return nn.Parameter(parameter.index_select(dim, columns), requires_grad=parameter.requires_grad)
