"""Softmax attention for every family, by the implementation that `config._attn_implementation` names.

    context = head_mask * (dropout(softmax(query key^T * scale + bias)) value), over the keys that the mask shows

"eager" is this formula written out and gives the probabilities too, "encoders_fast" is this library's
block_sparse_attention with every block listed, and "sdpa" is torch's fused operator, or the other one where that is
faster: see `_faster_in_blocks`. Other names are looked up among the attention functions that are registered with
transformers: "flash_attention_2", or one's own.

Source: Attention Is All You Need (Vaswani et al., 2017).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from .. import _dispatch, _dropout, _native
from .._op import direct
from ..ops import block_sparse_attention
from ..ops.block_sparse_attention.pattern import BlockSparsePattern
from .masks import EVERYTHING as EVERYTHING
from .masks import Mask as Mask
from .masks import head_masks as head_masks
from .masks import make_mask as make_mask
from .masks import padded_keys, scores_mask, with_mask


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None = None,
    *,
    scale: float,
    dropout_p: float = 0.0,
    head_mask: Tensor | None = None,
    bias: Tensor | None = None,
    rng_state: Tensor | None = None,
    output_attentions: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of each head over its keys.

    Args:
        module: the layer's attention; has `config`, and dropout happens in training only.
        query: [B, H, Tq, K]; key and value: [B, H, Tk, K].
        mask: which keys are visible; None for all. A query that sees none gets a finite context without a meaning.
            Where padding was taken out there is no bias, and there are no probabilities to be had.
        scale: of the scores.
        dropout_p: probability of an attention probability to be dropped.
        head_mask: [H], a factor for each head.
        bias: broadcasts to [B, H, Tq, Tk], added to the scaled scores.
        rng_state: int64 [2]: what "encoders_fast" drops; the others draw from torch's generator.
        output_attentions: asks for the probabilities. Only the written-out formula has them, and computes the context
            too then, whatever the configuration names.

    Returns: the context [B, Tq, H * K], and the probabilities [B, H, Tq, Tk] or None. They are what the values are
    multiplied with: after dropout and head_mask.

    Raises: NotImplementedError where the named implementation cannot take such a mask or a bias.
    """
    config: Any = module.config
    name = config._attn_implementation
    mask = mask or EVERYTHING
    kept = getattr(module, "kept_heads", None)
    if kept is not None and mask.pairs is not None and mask.pairs.shape[1] > len(kept):  # one for each head, pruned too
        mask = mask._replace(pairs=mask.pairs[:, kept])
    dropout_p = dropout_p if module.training else 0.0
    if mask.real is not None:
        return _of_real_tokens(module, (query, key, value), mask, scale, dropout_p, head_mask, rng_state), None
    plain = mask.pairs is None and bias is None
    if output_attentions or name == "eager":
        context, probabilities = _eager(
            query, key, value, mask, scale, dropout_p, head_mask, bias, rng_state if name == "encoders_fast" else None
        )
        return _join(context), probabilities if output_attentions else None
    if name == "encoders_fast" and plain and _static(mask):
        return _join(_blocks(query, key, value, mask, scale, dropout_p, head_mask, rng_state)), None
    if name in ("sdpa", "encoders_fast"):
        return _fused(query, key, value, mask, scale, dropout_p, head_mask, bias), None
    context = _registered(name, module, query, key, value, mask, scale, dropout_p, bias)
    return (context if head_mask is None else context * head_mask[:, None]).flatten(2), None


def _of_real_tokens(
    module: nn.Module,
    operands: tuple[Tensor, ...],
    mask: Mask,
    scale: float,
    dropout_p: float,
    head_mask: Tensor | None,
    rng_state: Tensor | None,
) -> Tensor:
    """One sequence after the other where torch's operator does it, else all of them with their padding."""
    config: Any = module.config
    real: Any = mask.real
    if config._attn_implementation != "sdpa":
        query, key, value = map(real.put_back_heads, operands)
        options: Any = {"scale": scale, "dropout_p": dropout_p, "head_mask": head_mask, "rng_state": rng_state}
        return real.take(attend(module, query, key, value, mask._replace(real=None), **options)[0])
    sequences = zip(*(operand.split(real.lengths, dim=2) for operand in operands), strict=True)
    parts = [_fused(q, k, v, EVERYTHING, scale, dropout_p, head_mask) for q, k, v in sequences]
    return torch.cat(parts, dim=1)


def _join(context: Tensor) -> Tensor:
    """[B, H, T, K] -> [B, T, H * K]"""
    return context.transpose(1, 2).flatten(2)


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    scale: float,
    dropout_p: float,
    head_mask: Tensor | None,
    bias: Tensor | None,
    rng_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    if bias is not None:
        scores = scores + bias
    probabilities = with_mask(scores, scores_mask(mask, query, key.shape[2])).softmax(-1)
    if dropout_p > 0:
        if rng_state is None:
            probabilities = F.dropout(probabilities, dropout_p)
        else:
            probabilities = _dropout.dropout(probabilities, dropout_p, rng_state)
    if head_mask is not None:
        probabilities = probabilities * head_mask[:, None, None]
    return torch.matmul(probabilities, value), probabilities


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    scale: float,
    dropout_p: float,
    head_mask: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    """[B, Tq, H * K]"""
    if bias is None and dropout_p == 0 and _faster_in_blocks(query, key, value, mask):
        return _join(_blocks(query, key, value, mask, scale, 0.0, head_mask, None))
    context = _sdpa(query, key, value, mask, scale, dropout_p, bias)
    return _join(context if head_mask is None else context * head_mask[:, None, None])


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor | None:
    """Attention over all keys, [B, Tq, H, K], where this library's kernel is the faster one; else None."""
    if not _faster_in_blocks(query, key, value, EVERYTHING):
        return None
    return _blocks(query, key, value, EVERYTHING, scale, 0.0, None, None).transpose(1, 2)


# Multiplications of all queries with all keys from which on block_sparse_attention's native kernel is no slower than
# torch's operator: below, the call takes longer than the work. The bench of every block has the figures; its smallest
# shape has just as many.
_WORTH_BLOCKS = 1 << 21


def _faster_in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> bool:
    """Whether block_sparse_attention does what torch's operator would, in less time and without anybody noticing: in
    eager mode on the CPU. Compilers and transforms know torch's operator.

    One query of a decoder is not worth packing its keys for: in float32 that takes twice torch's time. From 4 queries
    on it is taken, a choice."""
    Tq, Tk = query.shape[2], key.shape[2]
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and query.numel() * Tk >= _WORTH_BLOCKS
        and (Tq >= 4 or query.dtype != torch.float32)
        and mask.pairs is None
        and (mask.first_query is None or (isinstance(mask.first_query, int) and mask.first_query + Tq <= Tk))
        and torch.backends.cuda.flash_sdp_enabled()  # torch's switch for the CPU too: without it, its formula
        and _native.missing is None
        and _dispatch.forced() in (None, "cpu")
        and direct(query, key, value)
    )


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float, dropout_p: float, bias: Tensor | None
) -> Tensor:
    Tq, Tk = query.shape[2], key.shape[2]
    # Told so, the operator skips the upper half; shown a mask, it does not.
    causal = False
    if bias is None and mask.keys is None and mask.pairs is None and isinstance(mask.first_query, int):
        causal = True if mask.first_query == 0 and Tq == Tk else False  # noqa: SIM210  not a symbol of torch.compile
    visible = None if causal else scores_mask(mask, query, Tk)
    if bias is not None:
        visible = with_mask(bias, visible)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=visible, dropout_p=dropout_p, is_causal=causal, scale=scale
    )


def _static(mask: Mask) -> bool:
    """Whether the number of keys in use is known on the host; that of a compiled cache of fixed size is not."""
    return mask.first_query is None or isinstance(mask.first_query, int)


def _blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    scale: float,
    dropout_p: float,
    head_mask: Tensor | None,
    rng_state: Tensor | None,
) -> Tensor:
    Tq, Tk = query.shape[2], key.shape[2]
    keys = None if mask.keys is None else padded_keys(mask.keys, Tk)
    causal = isinstance(mask.first_query, int)
    if isinstance(mask.first_query, int) and mask.first_query + Tq < Tk:  # the free end of a cache of fixed size
        Tk = mask.first_query + Tq
        key, value, keys = key[:, :, :Tk], value[:, :, :Tk], None if keys is None else keys[:, :Tk]
    if dropout_p > 0 and rng_state is None:
        rng_state = _dropout.draw(query.device)
    pattern = BlockSparsePattern.full(Tq, Tk, causal=causal, device=query.device)
    return block_sparse_attention(
        query,
        key,
        value,
        pattern,
        key_padding_mask=keys,
        head_mask=head_mask,
        dropout_p=dropout_p,
        rng_state=rng_state,
        scale=scale,
    )


def _registered(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    scale: float,
    dropout_p: float,
    bias: Tensor | None,
) -> Tensor:
    """By a function that is registered with transformers; [B, T, H, K]."""
    causal = mask.first_query is not None
    if "flash" in name:
        if mask.pairs is not None or bias is not None:
            raise NotImplementedError(
                f"{name} takes an attention_mask [batch, keys] and no relative positions; sdpa and eager take more"
            )
        visible = mask.keys
    else:
        visible = scores_mask(mask, query, key.shape[2])
        if bias is not None:
            visible = with_mask(bias, visible)
        elif visible is not None and visible.dtype == torch.bool:
            visible = with_mask(query.new_zeros(visible.shape), visible)
        if visible is not None:  # not every function broadcasts
            visible = visible.expand(query.shape[0], -1, query.shape[2], -1)
        causal = False
    function: Any = ALL_ATTENTION_FUNCTIONS[name]
    context, _ = function(module, query, key, value, visible, dropout=dropout_p, scaling=scale, is_causal=causal)
    return context


def encoders_fast_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attn_implementation="encoders_fast"` in transformers' own models: block_sparse_attention with every block."""
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    Tq, Tk = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # several queries' heads share a key's
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mask = Mask(None if attention_mask is None else attention_mask.bool(), first_query=Tk - Tq if causal else None)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _blocks(query, key, value, mask, scale, dropout, None, None).transpose(1, 2).contiguous(), None


# The name is then a valid one for every model's `attn_implementation`; the mask that goes with it is [batch, keys].
AttentionInterface.register("encoders_fast", encoders_fast_attention)
AttentionMaskInterface.register("encoders_fast", flash_attention_mask)
