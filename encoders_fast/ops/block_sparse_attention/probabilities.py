"""The probabilities of block_sparse_attention as a dense tensor, for those who want to look at them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_tensors
from .checks import check_padding_mask, check_query_and_key, check_scale
from .pattern import BlockSparsePattern


def attention_probabilities(
    query: Tensor,
    key: Tensor,
    pattern: BlockSparsePattern,
    *,
    key_padding_mask: Tensor | None = None,
    query_padding_mask: Tensor | None = None,
    scale: float | None = None,
    sum_duplicates: bool = True,
) -> Tensor:
    """What `block_sparse_attention` multiplies the values by, without dropout and head mask: [B, H, Tq, Tk].

    As large as that says, in plain PyTorch: for `output_attentions`, pictures and gradients of any order.

    Args:
        query, key, pattern, key_padding_mask, query_padding_mask, scale: as in `block_sparse_attention`.
        sum_duplicates: a key of a block with multiplicity m gets the weight of its m copies, and rows sum to 1. False
            gives it the weight of one copy, as transformers' BigBird returns it: its rows sum to less than 1.

    Returns: [B, H, Tq, Tk] in query's dtype. A query without any key has zeros.

    Raises: as `block_sparse_attention`.
    """
    check_tensors(query=query, key=key)
    check_query_and_key(query, key, pattern)
    check_scale(scale)
    key_padding_mask = check_padding_mask("key_padding_mask", key_padding_mask, key)
    query_padding_mask = check_padding_mask("query_padding_mask", query_padding_mask, query)
    wide = torch.promote_types(query.dtype, torch.float32)
    counts = pattern.to(query.device).dense()
    scale = query.shape[3] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        scores = scale * query.to(wide) @ key.to(wide).mT + counts.to(wide).log()
    seen = counts > 0
    if key_padding_mask is not None:
        seen = seen & key_padding_mask[:, None, None]
    if query_padding_mask is not None:
        seen = seen & query_padding_mask[:, None, :, None]
    # Finite also in a row that sees nothing: the softmax of -inf alone, and its gradient, are not numbers.
    probabilities = scores.masked_fill(~seen, torch.finfo(wide).min).softmax(-1).masked_fill(~seen, 0)
    if not sum_duplicates:
        probabilities = probabilities / counts.clamp(min=1)
    return probabilities.to(query.dtype)
