"""Where tokens are: positions that count from 0, and the places of those that are not padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CountsPositions(nn.Module):
    """Embeddings whose positions and token types can be read as transformers' are, though they are no buffers.

    A buffer that is not in the checkpoint has no values where a model is built without memory, given some by `to_empty`
    and then loaded.
    """

    position_embeddings: nn.Embedding

    @property
    def position_ids(self) -> Tensor:
        """[1, P]: 0, 1, 2, ..."""
        positions = self.position_embeddings
        return torch.arange(positions.num_embeddings, device=positions.weight.device)[None]

    @property
    def token_type_ids(self) -> Tensor:
        """[1, P]: zeros."""
        return torch.zeros_like(self.position_ids)


def count_tokens(real: Tensor) -> Tensor:
    """[B, T]: n for the n-th token, from 0, that is `real`, bool [B, T]. Padding has the position of the token before
    it."""
    return (real.cumsum(1) - 1).clamp_min(0)


def first_tokens(h: Tensor, real: Tensor | None) -> Tensor:
    """Of h [B, T, D] each row's first `real` token, [B, 1, D]; h itself where there is no padding."""
    if real is None:
        return h
    first = real.int().argmax(1)[:, None, None]
    return h.gather(1, first.expand(-1, -1, h.shape[2]))


Lengths = list[tuple[Tensor, Tensor]]
"""For each length that occurs the places of the rows that have it: (rows [n, 1], columns [n, length]), an index into
tensors [B, T, ...]."""


def rows_by_length(real: Tensor) -> Lengths:
    """The places of all `real` tokens, bool [B, T]. On a GPU this waits for the values."""
    lengths = real.sum(1)
    places = []
    for length in lengths[lengths > 0].unique().tolist():
        rows = (lengths == length).nonzero()
        places.append((rows, real[rows[:, 0]].nonzero()[:, 1].view(-1, length)))
    return places
