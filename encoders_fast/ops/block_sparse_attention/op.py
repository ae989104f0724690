"""block_sparse_attention: softmax attention over a list of key blocks for every block of queries.

    s[q, k] = scale * query[q] . key[k] + log m[q, k]
    p[q, k] = exp(s[q, k]) / sum_k' exp(s[q, k'])
    out[q] = sum_k dropout(p)[q, k] value[k],   log_sum_exp[q] = log sum_k exp(s[q, k])

query, out: [B, H, Tq, K].  key, value: [B, H, Tk, K].  m: the pattern's multiplicities; a key with m = 0 is not
listed, and one that is padded counts as such. Any sizes of at least 1 (B may be 0), one dtype. Float32 inside whatever
the storage type (float64 for float64). A query without any key gets zeros and a log-sum-exp of -inf. No tensor of
Tq x Tk elements is made. Equal inputs give equal bits. Memory of the outputs and gradients is [B, T, H, K], as that of
torch's own attention: heads are joined, and gradients of a projection's parts taken, without a copy.

Dropout keeps p[b, h, q, k] where element ((b * H + h) * Tq + q) * Tk + k of the state's mask says so.

Source: Big Bird: Transformers for Longer Sequences (Zaheer et al., 2020), section 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _dispatch, _native
from ..._dispatch import Backend, Key
from ..._dropout import check as check_dropout
from ..._op import _transformed
from .. import _triton
from .._checks import check_tensors, wide
from . import reference
from .autograd import attention_op, statics
from .checks import Options, check_head_mask, check_padding_mask, check_query_and_key, check_scale
from .constructors import Lists
from .pattern import BlockSparsePattern


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: BlockSparsePattern,
    *,
    key_padding_mask: Tensor | None = None,
    query_padding_mask: Tensor | None = None,
    head_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    rng_state: Tensor | None = None,
    scale: float | None = None,
    return_log_sum_exp: bool = False,
) -> Any:
    """softmax(scale * query key^T) value over the blocks of keys that `pattern` lists.

    Args:
        query: [B, H, Tq, K] in float32, bfloat16, float16 or float64; strides are free, B may be 0.
        key, value: [B, H, Tk, K], of query's dtype. Under autocast the three are cast, as for torch's own attention.
        pattern: for Tq and Tk tokens and for H heads, or for one that stands for all.
        key_padding_mask: [B, Tk], bool or numbers; False or 0 takes a key out of every softmax.
        query_padding_mask: [B, Tq]; False or 0 makes the query's output and all gradients through it zeros. Without
            it a padded query is computed like any other.
        head_mask: [H] or [B, H], multiplies a head's output; differentiable.
        dropout_p: probability to drop a probability; the others are divided by 1 - dropout_p.
        rng_state: int64 [2] (seed, offset), needed where dropout_p > 0.
        scale: 1 / sqrt(K) unless given.
        return_log_sum_exp: whether to return it too.

    Returns: [B, H, Tq, K] in query's dtype, [B, Tq, H, K] in memory, or (that, log_sum_exp), log_sum_exp [B, H, Tq] in
    float32 (float64 for float64). Differentiable once in query, key and value.

    Raises: ValueError for shapes and devices that do not go together and a dropout without a state; TypeError for other
    dtypes; NotImplementedError where the backend that was asked for cannot run the call, for forward-mode
    differentiation and for a gradient of a gradient.
    """
    query, key, value, key_padding_mask, query_padding_mask = _checked(
        query, key, value, pattern, key_padding_mask, query_padding_mask, head_mask, dropout_p, rng_state, scale
    )
    lists = pattern.to(query.device).lists
    scale = query.shape[3] ** -0.5 if scale is None else float(scale)
    rng_state = rng_state if dropout_p > 0 else None
    factors, outside = None, head_mask
    if head_mask is not None and not head_mask.requires_grad and (torch.compiler.is_compiling() or not _transformed()):
        factors, outside = head_mask.to(wide(query[:0]).dtype).expand(query.shape[:2]), None
    tensors = (key_padding_mask, query_padding_mask, factors, rng_state)
    options = (pattern.block, pattern.causal, *tensors, float(dropout_p), scale)
    out, log_sum_exp = attention_op(query, key, value, *lists, *options, _dispatch.forced())
    if outside is not None:  # its gradient needs the output before it, and a transform may want one
        out = out * outside.to(out.dtype)[..., None, None]
    return (out, log_sum_exp) if return_log_sum_exp else out


def _checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: BlockSparsePattern,
    key_padding_mask: Tensor | None = None,
    query_padding_mask: Tensor | None = None,
    head_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    rng_state: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """query, key and value in the dtype of the result, and the two masks as bool."""
    check_tensors(query=query, key=key, value=value)
    query, key, value = _autocast(query, key, value)
    check_query_and_key(query, key, pattern, value=value)
    key_padding_mask = check_padding_mask("key_padding_mask", key_padding_mask, key)
    query_padding_mask = check_padding_mask("query_padding_mask", query_padding_mask, query)
    check_head_mask(head_mask, query)
    check_dropout(dropout_p, rng_state, query.device)
    check_scale(scale)
    return query, key, value, key_padding_mask, query_padding_mask


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


# ---- backends, each named after its file: csrc/block_sparse_attention/cpu.cpp, ./triton.py, ./reference.py


def _cpu_why_not(key: Key) -> str | None:
    if key.device != "cpu":
        return f"runs on the CPU; the input is on {key.device}"
    if torch.float64 in key.dtypes:
        return "computes in float32; the input is float64"
    return _native.missing


def _cpu_forward(query: Tensor, key: Tensor, value: Tensor, lists: Lists, options: Options) -> Any:
    native = torch.ops.encoders_fast_native.block_sparse_attention.default
    return native(query, key, value, *lists[:3], *options)


def _cpu_backward(
    dy: Tensor,
    dlog_sum_exp: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum_exp: Tensor,
    lists: Lists,
    options: Options,
) -> Any:
    native = torch.ops.encoders_fast_native.block_sparse_attention_backward.default
    return native(dy, dlog_sum_exp, query, key, value, log_sum_exp, *lists[:3], *options)


def _triton_why_not(key: Key) -> str | None:
    if key.widths[0] > 256:
        return f"takes heads of a width of up to 256; these have {key.widths[0]}"
    return _triton.why_not(key)


def _triton_forward(*args: Any) -> Any:
    from . import triton

    return triton.block_sparse_attention(*args)


def _triton_backward(*args: Any) -> Any:
    from . import triton

    return triton.block_sparse_attention_backward(*args)


def _always(key: Key) -> None:
    return None


def _statics(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: BlockSparsePattern,
    *,
    return_log_sum_exp: bool = False,
    **others: Any,
) -> tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]:
    query = _checked(query, key, value, pattern, **others)[0]
    return statics(query, pattern.block)


_dispatch.define(
    "block_sparse_attention",
    [
        Backend("cpu", _cpu_why_not, _cpu_forward, _cpu_backward),
        Backend("triton", _triton_why_not, _triton_forward, _triton_backward),
        Backend(
            "reference",
            _always,
            reference.block_sparse_attention,
            reference.block_sparse_attention_backward,
        ),
    ],
    _statics,
)
