"""The torch ops of block_sparse_attention: their fakes and gradients, above the backends.

A BlockSparsePattern is no torch type; an op takes its tensors one by one and gives a backend `Lists` and `Options`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _dispatch
from ..._op import Derivatives, op
from .checks import Options, new_result
from .constructors import Lists

_PATTERN_AND_OPTIONS = (
    "Tensor row_starts, Tensor columns, Tensor multiplicities, Tensor column_starts, Tensor rows,"
    " Tensor column_multiplicities, Tensor row_slices, Tensor column_slices, int block, bool causal,"
    " Tensor? key_padding_mask, Tensor? query_padding_mask, Tensor? head_mask, Tensor? rng_state, float dropout_p,"
    " float scale, str? backend"
)
_LISTS = len(Lists._fields)


def _split(args: tuple[Any, ...]) -> tuple[Lists, Options, str | None]:
    return Lists(*args[:_LISTS]), Options(*args[_LISTS:-1]), args[-1]


def statics(query: Tensor, block: int) -> tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]:
    """What a backend's choice depends on: the widths are K and the block's tokens."""
    return query.device, (query.dtype,), (query.shape[3], block)


def _forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    lists, options, backend = _split(rest)
    row = _dispatch.choose("block_sparse_attention", backend, *statics(query, options.block))
    if query.shape[0] == 0:
        return _fake(query, key, value, *rest)
    return row.forward(query, key, value, lists, options)


def _fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return new_result(query), query.new_empty(query.shape[:3], dtype=wide)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Any, ...]:
    lists, options = inputs[3 : 3 + _LISTS], inputs[3 + _LISTS :]
    ctx.block, ctx.causal, *tensors = options[:6]
    ctx.numbers = options[6:]
    return (*inputs[:3], *output, *lists, *tensors)


def _backward(ctx: Any, dy: Tensor | None, dlog_sum_exp: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, out, log_sum_exp, *rest = ctx.saved_tensors
    lists, tensors = rest[:_LISTS], rest[_LISTS:]
    gradients: tuple[Tensor | None, ...] = (None, None, None)
    if dy is not None or dlog_sum_exp is not None:
        dy = torch.zeros_like(out) if dy is None else dy
        options = (ctx.block, ctx.causal, *tensors, *ctx.numbers)
        gradients = backward_op(dy, dlog_sum_exp, query, key, value, out, log_sum_exp, *lists, *options)
    return *gradients, *(None,) * (_LISTS + 9)


attention_op = op(
    f"block_sparse_attention(Tensor query, Tensor key, Tensor value, {_PATTERN_AND_OPTIONS})"
    " -> (Tensor out, Tensor log_sum_exp)",
    forward=_forward,
    fake=_fake,
    derivatives=Derivatives(save=_save, backward=_backward),
)


# ---- the gradient


def _backward_forward(
    dy: Tensor,
    dlog_sum_exp: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum_exp: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    lists, options, backend = _split(rest)
    row = _dispatch.choose("block_sparse_attention", backend, *statics(query, options.block))
    if query.shape[0] == 0:
        return new_result(query), new_result(key), new_result(value)
    assert row.backward is not None  # register_backend sees to it
    return row.backward(dy, dlog_sum_exp, query, key, value, out, log_sum_exp, lists, options)


def _backward_fake(
    dy: Tensor, dlog_sum_exp: Tensor | None, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return new_result(query), new_result(key), new_result(value)


def _nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
    return ()


def _no_second_gradient(ctx: Any, *gradients: Any) -> Any:
    raise NotImplementedError(
        "block_sparse_attention is differentiable once; for a gradient of its gradient use"
        " attention_probabilities, which is plain PyTorch"
    )


backward_op = op(
    "block_sparse_attention_backward(Tensor dy, Tensor? dlog_sum_exp, Tensor query, Tensor key, Tensor value,"
    f" Tensor out, Tensor log_sum_exp, {_PATTERN_AND_OPTIONS}) -> (Tensor dquery, Tensor dkey, Tensor dvalue)",
    forward=_backward_forward,
    fake=_backward_fake,
    derivatives=Derivatives(save=_nothing, backward=_no_second_gradient),
)
