"""What the op means, in plain PyTorch, for every device. Tests trust this file.

float64 is computed in float64, every other dtype in float32 and rounded once at the end. Blocks of queries with lists
of one length are computed together, as many as fit `ELEMENTS`. Beside wide copies of arguments and results the memory
is that of 3 * ELEMENTS numbers, or of one block of queries where its list is longer than that; with dropout some tens
of times as much.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._dropout import keep_elements
from .._checks import wide
from .checks import Options, new_result
from .constructors import Lists

ELEMENTS = 1 << 20
"""Of the gathered keys and values and the scores that are in work at a time."""


class _Chunk(NamedTuple):
    """R blocks of queries with lists of L blocks of keys. Both are numbers of blocks, counted through heads and batch.

    bias: log of the multiplicity, -inf where a key has no weight.
    kept: None without dropout, else what it multiplies the probabilities by.
    """

    rows: Tensor
    """[R]"""
    keys: Tensor
    """[R * L]"""
    bias: Tensor
    """[R, 1 or block, L * block]"""
    kept: Tensor | None
    """[R, block, L * block]"""


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast would take the products below to half types; what it asks for has been done above the backends."""

    @functools.wraps(function)
    def in_float32(first: Tensor, *args: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args)

    return in_float32


@_without_autocast
def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, lists: Lists, options: Options
) -> tuple[Tensor, Tensor]:
    q, k, v = (_blocks(tensor, options.block) for tensor in (query, key, value))
    out, log_sum_exp = torch.zeros_like(q), q.new_full(q.shape[:2], float("-inf"))
    for rows, keys, bias, kept in _chunks(query, key, lists, options):
        scores = torch.baddbmm(bias, q[rows], _gather(k, keys, rows).mT, alpha=options.scale)
        weights, largest, total = _exponentials(scores)
        log_sum_exp[rows] = (largest + total.log()).squeeze(-1)
        if kept is not None:
            weights.mul_(kept)
        out[rows] = torch.bmm(weights, _gather(v, keys, rows)).div_(total.clamp_(min=1))
    out, log_sum_exp = _tokens(out, query), _tokens(log_sum_exp, query)
    if options.head_mask is not None:
        out = out * options.head_mask[..., None, None]
    if options.query_padding_mask is not None:
        padded = ~options.query_padding_mask[:, None]
        out, log_sum_exp = out.masked_fill(padded[..., None], 0), log_sum_exp.masked_fill(padded, float("-inf"))
    return new_result(query).copy_(out), log_sum_exp.contiguous()


@_without_autocast
def block_sparse_attention_backward(
    dy: Tensor,
    dlog_sum_exp: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum_exp: Tensor,
    lists: Lists,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """With P the probabilities, D what dropout multiplies them by and L the log-sum-exp,

    dV = (P D)^T dY,   dP = (dY V^T) D,   dS = P (dP - sum(P dP) + dL),   dQ = scale dS K,   dK = scale dS^T Q

    P is computed as in the forward pass: exp(S - L) would have L's rounding, twice the error of a plain softmax.
    """
    empty = log_sum_exp.isneginf()[..., None]
    # A query without keys, or padded, or behind the last one has no probabilities: they are divided by inf.
    dilution = torch.zeros_like(empty, dtype=log_sum_exp.dtype).masked_fill_(empty, float("inf"))
    dilution = _blocks(dilution, options.block, float("inf"))
    if dlog_sum_exp is not None:
        dlog_sum_exp = _blocks(dlog_sum_exp[..., None].masked_fill(empty, 0), options.block)
    if options.head_mask is not None:
        dy = wide(dy) * options.head_mask[..., None, None]
    q, k, v, dy_blocks = (_blocks(tensor, options.block) for tensor in (query, key, value, dy))
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, keys, bias, kept in _chunks(query, key, lists, options):
        q_rows, dy_rows, k_rows = q[rows], dy_blocks[rows], _gather(k, keys, rows)
        scores = torch.baddbmm(bias, q_rows, k_rows.mT, alpha=options.scale)
        weights, _, total = _exponentials(scores)
        p = weights.div_(total + dilution[rows])
        dp = torch.bmm(dy_rows, _gather(v, keys, rows).mT)
        if kept is not None:
            dp.mul_(kept)
        _add_blocks(dv, keys, torch.bmm((p if kept is None else p * kept).mT, dy_rows))
        ds = dp.mul_(p)
        mean = ds.sum(-1, keepdim=True)
        if dlog_sum_exp is not None:
            mean.sub_(dlog_sum_exp[rows])
        ds.addcmul_(p, mean, value=-1)
        dq[rows] = torch.bmm(ds, k_rows)
        _add_blocks(dk, keys, torch.bmm(ds.mT, q_rows))
    gradients = zip((dq.mul_(options.scale), dk.mul_(options.scale), dv), (query, key, value), strict=True)
    dq, dk, dv = (new_result(like).copy_(_tokens(gradient, like)) for gradient, like in gradients)
    return dq, dk, dv


def _exponentials(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(scores - largest) in the place of the scores, largest, and the sum, which is at least 1 where a key is."""
    # Not -inf, so that a row without any key becomes zeros: -inf minus -inf is not a number.
    largest = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    weights = scores.sub_(largest).exp_()
    return weights, largest, weights.sum(-1, keepdim=True)


def _blocks(tensor: Tensor, block: int, fill: float = 0.0) -> Tensor:
    """[B, H, T, K] as [B * H * blocks, block, K], in the wide dtype; `fill` completes the last block."""
    tensor = F.pad(wide(tensor), (0, 0, 0, -tensor.shape[2] % block), value=fill)
    return tensor.reshape(-1, block, tensor.shape[3])


def _tokens(blocks: Tensor, like: Tensor) -> Tensor:
    """[B * H * blocks, block, ...] as [B, H, T, ...], T, B and H those of `like`."""
    B, H, T, _ = like.shape
    return blocks.reshape(B, H, -1, *blocks.shape[2:])[:, :, :T]


def _gather(blocks: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
    """The keys or values of each row: [R, L * block, K]."""
    return blocks[keys].view(len(rows), -1, blocks.shape[2])


def _add_blocks(total: Tensor, keys: Tensor, addends: Tensor) -> None:
    """Adds to each of `keys`' blocks, in an order that does not change from one call to the next."""
    addends = addends.view(len(keys), *total.shape[1:])
    if total.device.type == "cpu":
        total.index_add_(0, keys, addends)
    else:  # sorts the keys, where index_add_ has atomics
        total.index_put_((keys,), addends, accumulate=True)


def _chunks(query: Tensor, key: Tensor, lists: Lists, options: Options) -> Iterator[_Chunk]:
    (B, H, Tq, K), Tk, block = query.shape, key.shape[2], options.block
    query_blocks, key_blocks = lists.row_starts.shape[1] - 1, lists.column_starts.shape[1] - 1
    inside = torch.arange(block, device=query.device)
    weightless = _weightless_keys(query, Tk, key_blocks * block, options.key_padding_mask).view(B, key_blocks, block)
    lengths = lists.row_starts.diff().expand(H, query_blocks)
    starts = lists.row_starts[:, :-1].expand(H, query_blocks).flatten()
    for length in lengths.unique().tolist():
        if length == 0:
            continue
        of_this_length = (lengths == length).expand(B, H, query_blocks).flatten().nonzero().squeeze(1)
        entries = torch.arange(length, device=query.device)
        for rows in of_this_length.split(max(1, ELEMENTS // (length * block * (block + 2 * K)))):
            sample_head = rows // query_blocks
            listed = starts[rows % (H * query_blocks)][:, None] + entries
            columns = lists.columns[listed].long()
            bias = lists.multiplicities[listed].to(weightless.dtype).log()[..., None]
            bias = bias + weightless[(sample_head // H)[:, None], columns]
            bias = bias.view(-1, 1, length * block)
            kept = None
            if options.causal or options.dropout_p > 0:
                k = (columns[..., None] * block + inside).view(-1, 1, length * block)
                q = (rows % query_blocks)[:, None, None] * block + inside[:, None]
                if options.causal:
                    bias = bias.masked_fill(k > q + Tk - Tq, float("-inf"))
                if options.dropout_p > 0:
                    kept = _kept((sample_head[:, None, None] * Tq + q) * Tk + k, options, bias.dtype)
            yield _Chunk(rows, (sample_head[:, None] * key_blocks + columns).flatten(), bias, kept)


def _weightless_keys(query: Tensor, tokens: int, padded: int, key_padding_mask: Tensor | None) -> Tensor:
    """[B, padded]: -inf for padded keys and for those behind the last one, 0 for the others."""
    real = query.new_zeros(query.shape[0], padded, dtype=torch.bool)
    real[:, :tokens] = True if key_padding_mask is None else key_padding_mask
    return torch.zeros_like(real, dtype=wide(query[:0]).dtype).masked_fill_(~real, float("-inf"))


def _kept(elements: Tensor, options: Options, dtype: torch.dtype) -> Tensor:
    assert options.rng_state is not None  # checked above the backends
    if options.dropout_p == 1:
        return torch.zeros_like(elements, dtype=dtype)
    return keep_elements(options.rng_state, elements, options.dropout_p).to(dtype).div_(1 - options.dropout_p)
