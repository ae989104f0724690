"""block_sparse_attention's forward kernels. Exponents are of 2: scores come multiplied by log2(e).

A list in one slice is done by one program. Of a list in several, each slice's program stores its sums relative to the
largest score that it met, and `combine` adds them up in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_language import product, rounded
from .triton_tiles import (
    assignment,
    entries,
    keep_of_listed_keys,
    key_bonus,
    listed,
    own,
    rows,
    sample_and_head,
    slot_of,
)

LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _finish(
    sums, total, largest, query_real, factors, out, log_sum_exp, b, h, token, there, H, Tq, factors_b, factors_h,
    kept_factor, K: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out and log_sum_exp of a tile of queries, whose sums [tokens, WIDTH] and totals are relative to exp2(largest)."""
    empty = total == 0
    total = tl.where(empty, 1.0, total)
    if query_real is not None:
        empty = empty | (tl.load(query_real + b * Tq + token, there, 0) == 0)
    result = sums / total[:, None] * kept_factor
    if factors is not None:
        result *= tl.load(factors + b * factors_b + h * factors_h)
    result = tl.where(empty[:, None], 0.0, result)
    width = tl.arange(0, WIDTH)
    at = out + ((b * Tq + token) * H + h)[:, None] * K + width[None, :]
    tl.store(at, rounded(result, out.dtype.element_ty), there[:, None] & (width < K)[None, :])
    logarithm = tl.where(empty, float("-inf"), (largest + tl.log2(total)) * LOG_2)
    tl.store(log_sum_exp + (b * H + h) * Tq + token, logarithm, there)


@triton.jit
def forward(
    query, key, value, key_real, query_real, factors, rng_state, out, log_sum_exp, part_sums, part_totals,
    slices, columns, multiplicities, items, slots, share, H, query_blocks, Tq, Tk,
    query_b, query_h, query_t, key_b, key_h, key_t, value_b, value_h, value_t, factors_b, factors_h,
    scale, threshold, kept_factor,
    K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, RAGGED: tl.constexpr, LISTED_RAGGED: tl.constexpr, CAUSAL: tl.constexpr, FOURS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row, first, last, parts, item, copy, piece = assignment(slices, items, PIECES)
    b, h = sample_and_head(row, copy, share, query_blocks)
    token, there = own(row % query_blocks, piece, Tq, BLOCK, TILE)
    q = rows(query + b * query_b + h * query_h, token, there, query_t, K, WIDTH, RAGGED)
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    if key_real is not None:
        key_real += b * Tk
    element = ((b * H + h) * Tq + token) * Tk
    largest = tl.full((TILE,), float("-inf"), tl.float32)
    base = tl.zeros((TILE,), tl.float32)  # largest, and 0 where there is none: -inf less -inf is not a number
    total = tl.zeros((TILE,), tl.float32)
    sums = tl.zeros((TILE, WIDTH), tl.float32)
    columns += first
    multiplicities += first
    end = (last - first) * BLOCK
    block = entries(columns, 0, end, 0, BLOCK, STEP, 1)
    multiplicity = entries(multiplicities, 0, end, 1, BLOCK, STEP, 1)
    for position in range(0, end, STEP):
        keys, exist = listed(block, position, end, Tk, BLOCK, STEP, 1)
        k = rows(key, keys, exist, key_t, K, WIDTH, LISTED_RAGGED)
        added = key_bonus(multiplicity, key_real, keys, exist, LISTED_RAGGED)
        block = entries(columns, position + STEP, end, 0, BLOCK, STEP, 1)
        multiplicity = entries(multiplicities, position + STEP, end, 1, BLOCK, STEP, 1)
        scores = product(q, tl.trans(k), PRECISION) * scale + added
        if CAUSAL:
            scores = tl.where(keys[None, :] <= token[:, None] + (Tk - Tq), scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(largest - base)
        largest = larger
        total = total * shrink + tl.sum(weights, 1)
        if rng_state is not None:
            keep = keep_of_listed_keys(
                rng_state, element, keys, columns, position, end, Tk, threshold, BLOCK, TILE, STEP, FOURS
            )
            weights = tl.where(keep, weights, 0.0)
        v = rows(value, keys, exist, value_t, K, WIDTH, LISTED_RAGGED)
        sums = sums * shrink[:, None] + product(rounded(weights, v.dtype), v, PRECISION)
    if parts == 1:
        _finish(
            sums, total, base, query_real, factors, out, log_sum_exp, b, h, token, there, H, Tq, factors_b, factors_h,
            kept_factor, K, WIDTH,
        )  # fmt: skip
    else:
        slot = slot_of(copy, item, piece, slots, PIECES)
        inside, width = tl.arange(0, TILE), tl.arange(0, WIDTH)
        tl.store(part_sums + slot * TILE * WIDTH + inside[:, None] * WIDTH + width[None, :], sums)
        tl.store(part_totals + slot * 2 * TILE + inside, total)
        tl.store(part_totals + slot * 2 * TILE + TILE + inside, base)


@triton.jit
def combine(
    query_real, factors, out, log_sum_exp, part_sums, part_totals, slices, slots, share, H, query_blocks, Tq,
    factors_b, factors_h, kept_factor,
    K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The results of lists in several slices, by the programs of the first ones."""
    row, _, _, parts, item, copy, piece = assignment(slices, slots, PIECES)
    if parts > 1:
        b, h = sample_and_head(row, copy, share, query_blocks)
        token, there = own(row % query_blocks, piece, Tq, BLOCK, TILE)
        inside, width = tl.arange(0, TILE), tl.arange(0, WIDTH)
        slot = slot_of(copy, item, piece, slots, PIECES)
        largest = tl.full((TILE,), float("-inf"), tl.float32)
        for part in range(0, parts):
            at = part_totals + (slot + part * PIECES) * 2 * TILE + inside
            # A slice without keys has a total of 0, and no largest score.
            largest = tl.maximum(largest, tl.where(tl.load(at) == 0, float("-inf"), tl.load(at + TILE)))
        base = tl.where(largest == float("-inf"), 0.0, largest)
        total = tl.zeros((TILE,), tl.float32)
        sums = tl.zeros((TILE, WIDTH), tl.float32)
        for part in range(0, parts):
            place = slot + part * PIECES
            of_part = tl.load(part_totals + place * 2 * TILE + inside)
            weight = tl.exp2(tl.load(part_totals + place * 2 * TILE + TILE + inside) - base)
            weight = tl.where(of_part == 0, 0.0, weight)
            total += weight * of_part
            at = part_sums + place * TILE * WIDTH + inside[:, None] * WIDTH + width[None, :]
            sums += weight[:, None] * tl.load(at)
        _finish(
            sums, total, base, query_real, factors, out, log_sum_exp, b, h, token, there, H, Tq, factors_b, factors_h,
            kept_factor, K, WIDTH,
        )  # fmt: skip
