"""Attention of accelerated models: the function that transformers would call, or this library's kernel where that is
faster and nobody would notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..attention import attend_in_blocks

Attention = Callable[..., tuple[Tensor, Tensor | None]]


def attention_function(name: str, eager: Attention) -> Attention:
    """What `config._attn_implementation` names; `eager` is the module's own."""
    function = eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    return _sdpa if function is sdpa_attention_forward else function


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    plain = attention_mask is None and dropout == 0 and not getattr(module, "is_causal", True)
    plain = plain and all(value is None for value in kwargs.values())
    if plain and scaling is not None and query.shape[1] == key.shape[1]:
        context = attend_in_blocks(query, key, value, scaling)
        if context is not None:
            return context, None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
