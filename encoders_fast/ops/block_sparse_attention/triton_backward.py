"""block_sparse_attention's backward kernels, in the notation of reference.py.

P is exp2(S - L), L the log-sum-exp in float32, divided by its sum over the row: so the rounding of L, which grows with
L, drops out. `backward_queries` walks along the rows' lists and finds these sums on its way. It leaves their inverses
and the means, sum(P dP) - dL, to `backward_keys`, which walks along the columns' lists. Lists in several slices are
added up, in the slices' order, by `combine_queries` and `combine_keys`. dY comes without the head's factor.

The means are sums of dY * out, over a row of a head. EXACT, for float32 and for heads of few columns, over which the
roundings of out do not cancel: what the means lack to those of the dP that the kernel finds is found on the way too,
and sum(P K) with it, by which dQ is mended. Where one key has all the weight, dP - sum(P dP) would else be no more than
the difference of two roundings.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_language import product, rounded
from .triton_tiles import (
    assignment,
    entries,
    keep_of_listed_keys,
    keep_of_own_keys,
    key_bonus,
    listed,
    own,
    rows,
    sample_and_head,
    slot_of,
)

LOG_2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _subtrahend(log_sum_exp, at, there):
    """log-sum-exps in powers of 2; inf where a query has none: then all its probabilities become 0."""
    found = tl.load(log_sum_exp + at, there, float("-inf"))
    return tl.where(found == float("-inf"), float("inf"), found * LOG_2_E)


@triton.jit
def _store(gradient, result, b, h, token, there, T, H, K: tl.constexpr, WIDTH: tl.constexpr):
    width = tl.arange(0, WIDTH)
    at = gradient + ((b * T + token) * H + h)[:, None] * K + width[None, :]
    tl.store(at, rounded(result, gradient.dtype.element_ty), there[:, None] & (width < K)[None, :])


@triton.jit
def _outside(dlog_sum_exp, at, there, empty):
    """The gradients of the log-sum-exps, 0 where a query has none."""
    found = tl.zeros_like(at).to(tl.float32)
    if dlog_sum_exp is not None:
        found = tl.where(empty, 0.0, tl.load(dlog_sum_exp + at, there, 0.0))
    return found


@triton.jit
def _finish_queries(
    sums, key_sums, total, rest, mean, outside, dquery, inverses, means, b, h, token, there, H, Tq, scale,
    K: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dquery of a tile of queries, and what `backward_keys` needs of them. All sums have the factor `total`.

    `rest` is what would be `outside` if `mean` were the mean of the dP that were found.
    """
    inverse = 1.0 / tl.where(total == 0, 1.0, total)
    if EXACT:
        shift = rest * inverse - outside
        mean += shift
        sums -= shift[:, None] * key_sums
    at = (b * H + h) * Tq + token
    tl.store(inverses + at, inverse, there)
    tl.store(means + at, mean, there)
    _store(dquery, sums * (inverse * scale)[:, None], b, h, token, there, Tq, H, K, WIDTH)


@triton.jit
def backward_queries(
    dy, dlog_sum_exp, query, key, value, y, log_sum_exp, key_real, factors, rng_state, dquery, inverses, means,
    part_sums, part_totals, slices, columns, multiplicities, items, slots, share, H, query_blocks, Tq, Tk,
    dy_b, dy_h, dy_t, query_b, query_h, query_t, key_b, key_h, key_t, value_b, value_h, value_t, y_b, y_h, y_t,
    factors_b, factors_h, scale, exponent_scale, threshold, kept_factor,
    K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, RAGGED: tl.constexpr, LISTED_RAGGED: tl.constexpr, CAUSAL: tl.constexpr, FOURS: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row, first, last, parts, item, copy, piece = assignment(slices, items, PIECES)
    b, h = sample_and_head(row, copy, share, query_blocks)
    token, there = own(row % query_blocks, piece, Tq, BLOCK, TILE)
    q = rows(query + b * query_b + h * query_h, token, there, query_t, K, WIDTH, RAGGED)
    gradient = rows(dy + b * dy_b + h * dy_h, token, there, dy_t, K, WIDTH, RAGGED)
    result = rows(y + b * y_b + h * y_h, token, there, y_t, K, WIDTH, RAGGED)
    at = (b * H + h) * Tq + token
    subtrahend = _subtrahend(log_sum_exp, at, there)
    outside = _outside(dlog_sum_exp, at, there, subtrahend == float("inf"))
    mean = tl.sum(gradient.to(tl.float32) * result.to(tl.float32), 1) - outside
    factor = kept_factor
    if factors is not None:
        factor *= tl.load(factors + b * factors_b + h * factors_h)
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    if key_real is not None:
        key_real += b * Tk
    total = tl.zeros((TILE,), tl.float32)
    rest = tl.zeros((TILE,), tl.float32)
    sums = tl.zeros((TILE, WIDTH), tl.float32)
    key_sums = tl.zeros((TILE, WIDTH), tl.float32)
    columns += first
    multiplicities += first
    end = (last - first) * BLOCK
    block = entries(columns, 0, end, 0, BLOCK, STEP, 1)
    multiplicity = entries(multiplicities, 0, end, 1, BLOCK, STEP, 1)
    for position in range(0, end, STEP):
        keys, exist = listed(block, position, end, Tk, BLOCK, STEP, 1)
        k = rows(key, keys, exist, key_t, K, WIDTH, LISTED_RAGGED)
        v = rows(value, keys, exist, value_t, K, WIDTH, LISTED_RAGGED)
        added = key_bonus(multiplicity, key_real, keys, exist, LISTED_RAGGED)
        block = entries(columns, position + STEP, end, 0, BLOCK, STEP, 1)
        multiplicity = entries(multiplicities, position + STEP, end, 1, BLOCK, STEP, 1)
        scores = product(q, tl.trans(k), PRECISION) * exponent_scale + added
        if CAUSAL:
            scores = tl.where(keys[None, :] <= token[:, None] + (Tk - Tq), scores, float("-inf"))
        weights = tl.exp2(scores - subtrahend[:, None])
        total += tl.sum(weights, 1)
        dweights = product(gradient, tl.trans(v), PRECISION) * factor
        if rng_state is not None:
            keep = keep_of_listed_keys(
                rng_state, at * Tk, keys, columns, position, end, Tk, threshold, BLOCK, TILE, STEP, FOURS
            )
            dweights = tl.where(keep, dweights, 0.0)
        dscores = weights * (dweights - mean[:, None])
        sums += product(rounded(dscores, k.dtype), k, PRECISION)
        if EXACT:
            rest += tl.sum(dscores, 1)
            key_sums += product(rounded(weights, k.dtype), k, PRECISION)
    if parts == 1:
        _finish_queries(
            sums, key_sums, total, rest, mean, outside, dquery, inverses, means, b, h, token, there, H, Tq, scale,
            K, WIDTH, EXACT,
        )  # fmt: skip
    else:
        slot = slot_of(copy, item, piece, slots, PIECES)
        inside, width = tl.arange(0, TILE), tl.arange(0, WIDTH)
        place = part_sums + slot * (1 + EXACT) * TILE * WIDTH + inside[:, None] * WIDTH + width[None, :]
        tl.store(place, sums)
        tl.store(part_totals + slot * 2 * TILE + inside, total)
        if EXACT:
            tl.store(place + TILE * WIDTH, key_sums)
            tl.store(part_totals + slot * 2 * TILE + TILE + inside, rest)
        if parts > 1:
            tl.store(means + at, mean, there)


@triton.jit
def combine_queries(
    dlog_sum_exp, dquery, inverses, means, part_sums, part_totals, slices, slots, share, H, query_blocks, Tq, scale,
    K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, TILE: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """The results of lists in several slices, by the programs of the first ones."""
    row, _, _, parts, item, copy, piece = assignment(slices, slots, PIECES)
    if parts > 1:
        b, h = sample_and_head(row, copy, share, query_blocks)
        token, there = own(row % query_blocks, piece, Tq, BLOCK, TILE)
        inside, width = tl.arange(0, TILE), tl.arange(0, WIDTH)
        slot = slot_of(copy, item, piece, slots, PIECES)
        total = tl.zeros((TILE,), tl.float32)
        rest = tl.zeros((TILE,), tl.float32)
        sums = tl.zeros((TILE, WIDTH), tl.float32)
        key_sums = tl.zeros((TILE, WIDTH), tl.float32)
        for part in range(0, parts):
            place = slot + part * PIECES
            total += tl.load(part_totals + place * 2 * TILE + inside)
            of_part = part_sums + place * (1 + EXACT) * TILE * WIDTH + inside[:, None] * WIDTH + width[None, :]
            sums += tl.load(of_part)
            if EXACT:
                rest += tl.load(part_totals + place * 2 * TILE + TILE + inside)
                key_sums += tl.load(of_part + TILE * WIDTH)
        at = (b * H + h) * Tq + token
        outside = _outside(dlog_sum_exp, at, there, total == 0)
        _finish_queries(
            sums, key_sums, total, rest, tl.load(means + at, there, 0.0), outside, dquery, inverses, means,
            b, h, token, there, H, Tq, scale, K, WIDTH, EXACT,
        )  # fmt: skip


@triton.jit
def backward_keys(
    dy, query, key, value, log_sum_exp, inverses, means, key_real, factors, rng_state, dkey, dvalue, part_sums,
    slices, listed_rows, multiplicities, items, slots, share, H, key_blocks, Tq, Tk,
    dy_b, dy_h, dy_t, query_b, query_h, query_t, key_b, key_h, key_t, value_b, value_h, value_t,
    factors_b, factors_h, scale, exponent_scale, threshold, kept_factor,
    K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, RAGGED: tl.constexpr, LISTED_RAGGED: tl.constexpr, CAUSAL: tl.constexpr, FOURS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores are transposed, [keys, queries]: so they are the left factors of both sums as they come."""
    column, first, last, parts, item, copy, piece = assignment(slices, items, PIECES)
    b, h = sample_and_head(column, copy, share, key_blocks)
    token, there = own(column % key_blocks, piece, Tk, BLOCK, TILE)
    first_key = (column % key_blocks).to(tl.int64) * BLOCK + piece * TILE
    k = rows(key + b * key_b + h * key_h, token, there, key_t, K, WIDTH, RAGGED)
    v = rows(value + b * value_b + h * value_h, token, there, value_t, K, WIDTH, RAGGED)
    counts = there
    if key_real is not None:
        counts = tl.load(key_real + b * Tk + token, there, 0) != 0
    factor = kept_factor
    if factors is not None:
        factor *= tl.load(factors + b * factors_b + h * factors_h)
    query += b * query_b + h * query_h
    dy += b * dy_b + h * dy_h
    head = (b * H + h) * Tq
    dk = tl.zeros((TILE, WIDTH), tl.float32)
    dv = tl.zeros((TILE, WIDTH), tl.float32)
    listed_rows += first
    multiplicities += first
    end = (last - first) * BLOCK
    block = entries(listed_rows, 0, end, 0, BLOCK, STEP, 1)
    multiplicity = entries(multiplicities, 0, end, 1, BLOCK, STEP, 1)
    for position in range(0, end, STEP):
        queries, exist = listed(block, position, end, Tq, BLOCK, STEP, 1)
        q = rows(query, queries, exist, query_t, K, WIDTH, LISTED_RAGGED)
        gradient = rows(dy, queries, exist, dy_t, K, WIDTH, LISTED_RAGGED)
        subtrahend = _subtrahend(log_sum_exp, head + queries, exist)
        inverse = tl.load(inverses + head + queries, exist, 0.0)
        mean = tl.load(means + head + queries, exist, 0.0)
        added = tl.log2(multiplicity.to(tl.float32))
        block = entries(listed_rows, position + STEP, end, 0, BLOCK, STEP, 1)
        multiplicity = entries(multiplicities, position + STEP, end, 1, BLOCK, STEP, 1)
        scores = product(k, tl.trans(q), PRECISION) * exponent_scale + added
        if key_real is not None or RAGGED:
            scores = tl.where(counts[:, None], scores, float("-inf"))
        if CAUSAL:
            scores = tl.where(token[:, None] <= queries[None, :] + (Tk - Tq), scores, float("-inf"))
        weights = tl.exp2(scores - subtrahend[None, :]) * inverse[None, :]
        dweights = product(v, tl.trans(gradient), PRECISION) * factor
        dropped = weights
        if rng_state is not None:
            element = (head + queries) * Tk
            keep = keep_of_own_keys(rng_state, element, token, first_key, threshold, STEP, TILE, FOURS)
            dropped = tl.where(keep, weights, 0.0)
            dweights = tl.where(keep, dweights, 0.0)
        dv += product(rounded(dropped, gradient.dtype), gradient, PRECISION)
        dscores = weights * (dweights - mean[None, :])
        dk += product(rounded(dscores, q.dtype), q, PRECISION)
    if parts == 1:
        _store(dkey, dk * scale, b, h, token, there, Tk, H, K, WIDTH)
        _store(dvalue, dv * factor, b, h, token, there, Tk, H, K, WIDTH)
    else:
        slot = slot_of(copy, item, piece, slots, PIECES)
        inside, width = tl.arange(0, TILE), tl.arange(0, WIDTH)
        at = part_sums + slot * 2 * TILE * WIDTH + inside[:, None] * WIDTH + width[None, :]
        tl.store(at, dk * scale)
        tl.store(at + TILE * WIDTH, dv * factor)


@triton.jit
def combine_keys(
    dkey, dvalue, part_sums, slices, slots, share, H, key_blocks, Tk,
    K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    column, _, _, parts, item, copy, piece = assignment(slices, slots, PIECES)
    if parts > 1:
        b, h = sample_and_head(column, copy, share, key_blocks)
        token, there = own(column % key_blocks, piece, Tk, BLOCK, TILE)
        inside, width = tl.arange(0, TILE), tl.arange(0, WIDTH)
        slot = slot_of(copy, item, piece, slots, PIECES)
        dk = tl.zeros((TILE, WIDTH), tl.float32)
        dv = tl.zeros((TILE, WIDTH), tl.float32)
        for part in range(0, parts):
            at = part_sums + (slot + part * PIECES) * 2 * TILE * WIDTH + inside[:, None] * WIDTH + width[None, :]
            dk += tl.load(at)
            dv += tl.load(at + TILE * WIDTH)
        _store(dkey, dk, b, h, token, there, Tk, H, K, WIDTH)
        _store(dvalue, dv, b, h, token, there, Tk, H, K, WIDTH)
