"""Masks as the models take them, and as attention wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .inputs import readable

if TYPE_CHECKING:
    from .padding import RealTokens


class Mask(NamedTuple):
    """Which keys a query sees: those that none of the three hides."""

    keys: Tensor | None = None
    """bool [B, keys]: False where a key is padding. Keys behind the last column are hidden."""
    pairs: Tensor | None = None
    """[B or 1, H or 1, Tq or 1, Tk]: bool, False where a key is hidden from a query, or numbers added to the scores."""
    first_query: int | Tensor | None = None
    """In a causal attention, which key belongs to the first query: query i sees keys up to first_query + i."""
    real: RealTokens | None = None
    """Where padding was taken out: which tokens queries and keys are of, then all of one sequence, [1, H, N, K]."""


EVERYTHING = Mask()


def make_mask(
    attention_mask: Tensor | None,
    h: Tensor,
    keys: int | None,
    first_query: int | Tensor | None = None,
    name: str = "attention_mask",
) -> Mask:
    """The mask that a model's argument `attention_mask` stands for.

    Args:
        attention_mask: [B, keys], 0 where a token is padding; [B, Tq, Tk], 0 where a key is hidden from a query; or
            [B, H or 1, Tq, Tk]: likewise where it is of booleans or integers, else numbers to be added to the scores.
            With three or four dimensions it says everything, and nothing is causal on top of it.
        h: [B, Tq] or [B, Tq, D], what the queries are made of.
        keys: how many keys there are, where that is known.
        first_query: of a causal attention, see `Mask`.
        name: what errors call the argument.

    Raises: ValueError for another shape.
    """
    if attention_mask is None:
        return Mask(first_query=first_query)
    B, T = h.shape[:2]
    shape, given = attention_mask.shape, attention_mask.to(h.device)
    if attention_mask.dim() == 2:
        if shape[0] not in (1, B) or (keys is not None and shape[1] != keys):
            raise ValueError(
                f"{name} {tuple(shape)} must be {(B, keys)}, one number per key, or have 3 or 4 dimensions"
            )
        visible = given.bool().expand(B, -1)
        return Mask(None if readable(visible) and visible.all() else visible, first_query=first_query)
    if attention_mask.dim() not in (3, 4) or shape[0] not in (1, B) or shape[-2] not in (1, T):
        raise ValueError(
            f"{name} must be [batch, keys], [batch, queries, keys] or [batch, heads or 1, queries, keys], here"
            f" of {B} sequences and {T} queries; its shape is {tuple(shape)}"
        )
    if attention_mask.dim() == 3:
        return Mask(pairs=given.bool()[:, None])
    if not given.is_floating_point():
        return Mask(pairs=given.bool())
    return Mask(pairs=given)


def scores_mask(mask: Mask, query: Tensor, Tk: int) -> Tensor | None:
    """`mask` in one tensor that broadcasts to [B, H, Tq, Tk]: bool, False where a key is hidden, or numbers to add."""
    Tq, device = query.shape[2], query.device
    if mask.pairs is not None:
        if mask.pairs.shape[-1] != Tk:
            raise ValueError(f"attention_mask {tuple(mask.pairs.shape)} must have {Tk} columns, one per key")
        if mask.pairs.dtype == torch.bool:
            return mask.pairs
        # The least number of the dtype and not -inf: a query that sees nothing must not become NaN.
        return mask.pairs.clamp_min(torch.finfo(query.dtype).min).to(query.dtype)
    visible = None
    if mask.keys is not None:
        visible = padded_keys(mask.keys, Tk)[:, None, None]
    if mask.first_query is not None and not _sees_all(mask.first_query, Tk):
        last = torch.arange(Tq, device=device)[:, None] + mask.first_query
        causal = torch.arange(Tk, device=device) <= last
        visible = causal if visible is None else visible & causal
    return visible


def _sees_all(first_query: int | Tensor, Tk: int) -> bool:
    return isinstance(first_query, int) and first_query >= Tk - 1


def padded_keys(keys: Tensor, Tk: int) -> Tensor:
    """keys [B, n] as [B, Tk]: a cache of fixed size has room behind the last key."""
    return keys if keys.shape[1] == Tk else F.pad(keys, (0, Tk - keys.shape[1]))


def head_masks(head_mask: Tensor | None, layers: int, heads: int, dtype: torch.dtype) -> list[Tensor | None]:
    """One [heads] for each layer, of a model's argument `head_mask`: a factor for each head's probabilities, [heads] or
    [layers, heads]. Raises ValueError for another shape."""
    if head_mask is None:
        return [None] * layers
    if tuple(head_mask.shape) not in ((heads,), (layers, heads)):
        raise ValueError(f"head_mask {tuple(head_mask.shape)} must be {(heads,)} or {(layers, heads)}")
    return list(head_mask.to(dtype).expand(layers, heads).unbind())


def with_mask(scores: Tensor, visible: Tensor | None) -> Tensor:
    """`scores` with what `scores_mask` gave laid over them, finite in every dtype."""
    if visible is None:
        return scores
    hidden = torch.finfo(scores.dtype).min
    if visible.dtype == torch.bool:
        return scores.masked_fill(~visible, hidden)
    return (scores + visible).clamp_min(hidden)


def real_tokens(mask: Mask, tokens: Tensor) -> Tensor | None:
    """bool [B, T], False where a token is padding, or None. Raises ValueError where the mask does not tell."""
    if mask.pairs is not None:
        shape = tuple(tokens.shape[:2])
        raise ValueError(f"with exact_padding, attention_mask must be {shape}, one number per token; it is for pairs")
    return mask.keys
