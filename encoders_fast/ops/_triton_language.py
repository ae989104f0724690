"""What Triton kernels of several ops share on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from . import _triton

INTERPRETED = tl.constexpr(_triton.INTERPRETED)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 -> dtype, to the nearest and to even. The interpreter cuts bfloat16 off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a b in float32. The interpreter multiplies the bit patterns of bfloat16."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def random_words(rng_state, block, SITE: tl.constexpr = 0):
    """Four times 32 random bits for each of `block`, int64: ../_dropout.py in its words, at(rng_state, 0, SITE)."""
    seed = tl.load(rng_state).to(tl.uint64, bitcast=True)
    offset = (tl.load(rng_state + 1) + SITE).to(tl.uint64, bitcast=True)
    zero = tl.zeros_like(block)
    low = (block & 0xFFFFFFFF).to(tl.uint32)
    high = ((block >> 32) & 0xFFFFFFFF).to(tl.uint32)
    offset_low = (zero + (offset & 0xFFFFFFFF).to(tl.int64)).to(tl.uint32)
    offset_high = (zero + (offset >> 32).to(tl.int64)).to(tl.uint32)
    return tl.philox(seed, low, high, offset_low, offset_high)


@triton.jit
def kept(rng_state, element, threshold, SITE: tl.constexpr = 0):
    """Whether dropout keeps each of `element`, int64: its word is at least `threshold`, round(p * 2**32)."""
    w0, w1, w2, w3 = random_words(rng_state, element >> 2, SITE)
    place = element & 3
    word = tl.where(place == 0, w0, tl.where(place == 1, w1, tl.where(place == 2, w2, w3)))
    return word.to(tl.int64) >= threshold


@triton.jit
def kept_in_fours(rng_state, block, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SITE: tl.constexpr = 0):
    """The same for the four elements of each of `block` [ROWS, COLUMNS / 4]: [ROWS, COLUMNS]."""
    w0, w1, w2, w3 = random_words(rng_state, block, SITE)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(words, (ROWS, COLUMNS)).to(tl.int64) >= threshold


@triton.jit
def add_up(sums, dweight, dbias, D, parts, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    """The gradients of two parameters [D]: sums [parts, 2, D] over the parts, in a fixed order. Columns of one program
    may be of both."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        there = (part < parts)[:, None] & (column < 2 * D)[None, :]
        total += tl.load(sums + part.to(tl.int64)[:, None] * 2 * D + column[None, :], there, 0.0)
    result = rounded(tl.sum(total, 0), dweight.dtype.element_ty)
    tl.store(dweight + column, result, column < D)
    tl.store(dbias + column - D, result, (column >= D) & (column < 2 * D))
