"""MobileBERT's layers as one call, where nobody looks at what is between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.bottleneck.layers import packed_layers, plainly
from ..ops.bottleneck.parameters import Sequences
from .masks import Mask, padded_keys
from .mobilebert_parts import Parts


def all_layers(encoder: Any, h: Tensor, mask: Mask, head_masks: list[Tensor | None]) -> Tensor | None:
    """h [B, T, H] behind all of the encoder's layers; None where they have to be called one by one."""
    if not plainly(h) or mask.pairs is not None or mask.first_query is not None or not head_masks:
        return None
    parts: Parts = encoder.parts()
    attentions = {(own.config._attn_implementation, _kept_heads(own), own.scaling) for own in parts.own}
    if len(attentions) > 1 or parts.drops():
        return None
    implementation, kept_heads, scaling = attentions.pop()
    parameters = None if implementation != "sdpa" else parts.parameters()
    if parameters is None:
        return None
    lengths = [h.shape[1]] * h.shape[0] if mask.real is None else mask.real.lengths
    keys = None if mask.keys is None or mask.real is not None else padded_keys(mask.keys, h.shape[1]).contiguous()
    factors = _factors(head_masks, list(kept_heads), len(lengths))
    sequences = Sequences(len(kept_heads), scaling, lengths, keys, factors)
    return packed_layers(
        h, *parameters, len(parts.layers), parts.from_bottleneck, parts.activation, sequences, parts.alike
    )


def _kept_heads(own: Any) -> tuple[int, ...]:
    return tuple(own.kept_heads) if hasattr(own, "kept_heads") else tuple(range(own.num_attention_heads))


def _factors(head_masks: list[Tensor | None], kept_heads: list[int], sequences: int) -> Tensor | None:
    """float32 [layers, sequences, heads]"""
    given = [head_mask for head_mask in head_masks if head_mask is not None]
    if not given:
        return None
    factors = torch.stack(given).float()
    if len(kept_heads) < factors.shape[1]:
        factors = factors[:, kept_heads]
    return factors[:, None].expand(-1, sequences, -1).contiguous()
