"""Gradients of matrices, as products over all rows. Rows are split into parts that run side by side and write sums of
their own; a second kernel adds these up, in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_language import rounded
from .triton_parts import activate, load_rows, multiply


@triton.jit
def of_matrices(
    dy, x, sums, rows, rows_of_part, dy_step, x_step, dy_group, x_group, sums_group, sums_part,
    N: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dy^T act(x) over the rows of a part, for dy [groups, rows, N] and x [groups, rows, K]."""
    tile, group, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    dy += group * dy_group
    x += group * x_group
    first_n, first_k = tile // tl.cdiv(K, BLOCK_K) * BLOCK_N, tile % tl.cdiv(K, BLOCK_K) * BLOCK_K
    begin = part * rows_of_part
    end = tl.minimum(begin + rows_of_part, rows)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for first in range(0, rows_of_part, BLOCK_M):
        row = begin + first + tl.arange(0, BLOCK_M)
        left = tl.trans(load_rows(dy, row, end, dy_step, first_n, N, BLOCK_N))
        right = load_rows(x, row, end, x_step, first_k, K, BLOCK_K)
        if ACTIVATION is not None:
            right = activate(right.to(tl.float32), ACTIVATION)
        total += multiply(left, right, OPERAND, PRECISION)
    n, k = first_n + tl.arange(0, BLOCK_N), first_k + tl.arange(0, BLOCK_K)
    at = sums + part * sums_part + group * sums_group + n[:, None] * K + k[None, :]
    tl.store(at, total, (n < N)[:, None] & (k < K)[None, :])


@triton.jit
def add_up(sums, result, width, parts, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    """result [width], of sums [parts, width]."""
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for first in range(0, parts, PARTS):
        part = (first + tl.arange(0, PARTS)).to(tl.int64)
        there = (part < parts)[:, None] & (column < width)[None, :]
        total += tl.load(sums + part[:, None] * width + column[None, :], there, 0.0)
    tl.store(result + column, rounded(tl.sum(total, 0), result.dtype.element_ty), column < width)
