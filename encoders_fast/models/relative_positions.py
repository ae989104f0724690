"""Attention scores that depend on the distance between two tokens, by an embedding of distances.

Source: Self-Attention with Relative Position Representations (Shaw et al., 2018) for "relative_key", and Improve
Transformer Models with Better Relative Position Embeddings (Huang et al., 2020), method 4, for "relative_key_query".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EMBEDDING_TYPES = ("absolute", "relative_key", "relative_key_query")


def embedding_type(config: Any) -> str:
    """The configuration's; "absolute" for one of transformers, which has none. Raises ValueError for another type."""
    found = getattr(config, "position_embedding_type", "absolute")
    if found not in EMBEDDING_TYPES:
        raise ValueError(f"position_embedding_type must be one of {', '.join(EMBEDDING_TYPES)}; it is {found!r}")
    return found


def relative_scores(
    query: Tensor, key: Tensor, distances: Tensor, first_query: int | Tensor, *, with_keys: bool
) -> Tensor:
    """score(i, j) = query_i . e(i - j), and with_keys + key_j . e(i - j), where e(n) = distances[n + P - 1].

    Args:
        query: [B, H, Tq, K]; key: [B, H, Tk, K].
        distances: [2 P - 1, K]; Tk is at most P.
        first_query: the position of the first query, that of the first key being 0.

    Returns: [B, H, Tq, Tk].
    """
    Tq, Tk = query.shape[2], key.shape[2]
    positions = torch.arange(Tq, device=query.device) + first_query
    index = positions[:, None] - torch.arange(Tk, device=query.device) + distances.shape[0] // 2
    # Scores of all distances, and of these the right ones: no [Tq, Tk, K] tensor.
    scores = torch.matmul(query, distances.T).gather(-1, index.expand(*query.shape[:2], -1, -1))
    if not with_keys:
        return scores
    of_keys = torch.matmul(key, distances.T).gather(-1, index.T.expand(*key.shape[:2], -1, -1))
    return scores + of_keys.transpose(-1, -2)
