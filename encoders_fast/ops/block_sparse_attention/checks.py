"""What block_sparse_attention takes: one clear sentence for everything else, before any work."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import DTYPES, check_tensors
from .pattern import BlockSparsePattern


class Options(NamedTuple):
    """What a backend gets beside query, key, value and the pattern's Lists."""

    block: int
    causal: bool
    key_padding_mask: Tensor | None
    """bool [B, Tk], True for a key that counts"""
    query_padding_mask: Tensor | None
    """bool [B, Tq], True for a query that counts"""
    head_mask: Tensor | None
    """float32 [B, H] (float64 beside float64), multiplies `out`; no gradient of it is asked for"""
    rng_state: Tensor | None
    """int64 [2], there where dropout_p > 0"""
    dropout_p: float
    scale: float


def new_result(like: Tensor) -> Tensor:
    """An empty tensor of that shape [B, H, T, K], its memory [B, T, H, K]."""
    B, H, T, K = like.shape
    return like.new_empty_strided((B, H, T, K), (T * H * K, K, H * K, 1))


def check_query_and_key(query: Tensor, key: Tensor, pattern: BlockSparsePattern, **others: Tensor) -> None:
    """`others` are tensors of the key's shape, by name."""
    if not isinstance(pattern, BlockSparsePattern):
        raise TypeError(f"pattern must be a BlockSparsePattern; it is {type(pattern).__name__}")
    for name, tensor in {"query": query, "key": key, **others}.items():
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} must be float32, bfloat16, float16 or float64; it is {tensor.dtype}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor; its layout is {tensor.layout}")
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, query is {query.dtype}; they must be of one dtype")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query is on {query.device}")
        if tensor.dim() != 4:
            raise ValueError(f"{name} must be [batch, heads, tokens, width]; its shape is {tuple(tensor.shape)}")
    if query.shape[:2] != key.shape[:2] or query.shape[3] != key.shape[3] or query.shape[1] * query.shape[3] == 0:
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} must have one batch, one or more heads, and one"
            " width of at least 1"
        )
    for name, tensor in others.items():
        if tensor.shape != key.shape:
            raise ValueError(f"{name} {tuple(tensor.shape)} must have the shape of key, {tuple(key.shape)}")
    if (query.shape[2], key.shape[2]) != (pattern.query_tokens, pattern.key_tokens):
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} do not have the tokens of the pattern,"
            f" {pattern.query_tokens} and {pattern.key_tokens}"
        )
    if pattern.heads not in (1, query.shape[1]):
        raise ValueError(f"query {tuple(query.shape)} has not the pattern's number of heads, {pattern.heads}")


def check_scale(scale: float | None) -> None:
    if scale is not None and not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number or None; it is {scale!r}")


def check_padding_mask(name: str, mask: Tensor | None, of: Tensor) -> Tensor | None:
    """The mask of `of`'s tokens, as bool."""
    if mask is None:
        return None
    check_tensors(**{name: mask})
    if mask.shape != (of.shape[0], of.shape[2]):
        raise ValueError(f"{name} must be ({of.shape[0]}, {of.shape[2]}); its shape is {tuple(mask.shape)}")
    if mask.device != of.device:
        raise ValueError(f"{name} is on {mask.device}, query is on {of.device}")
    return mask if mask.dtype == torch.bool else mask != 0


def check_head_mask(head_mask: Tensor | None, query: Tensor) -> None:
    if head_mask is None:
        return
    check_tensors(head_mask=head_mask)
    B, H = query.shape[:2]
    if head_mask.shape not in ((H,), (B, H)):
        raise ValueError(f"head_mask must be ({H},) or ({B}, {H}); its shape is {tuple(head_mask.shape)}")
    if head_mask.device != query.device:
        raise ValueError(f"head_mask is on {head_mask.device}, query is on {query.device}")
