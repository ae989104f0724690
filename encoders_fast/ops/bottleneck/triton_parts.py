"""What the kernels of both ops are made of. A program has a tile of rows; row is int64 [BLOCK_M].

Where a tile is wider than what it holds, the rest of it is zero, and stays so through products, norms and activations.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_language import kept, kept_in_fours, product, rounded


@triton.jit
def load_rows(x, row, rows, step, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK_M, BLOCK] of x [rows, WIDTH], from column `first` on."""
    column = first + tl.arange(0, BLOCK)
    there = (row < rows)[:, None] & (column < WIDTH)[None, :]
    return tl.load(x + row[:, None] * step + column[None, :], there, 0.0)


@triton.jit
def store_rows(x, value, row, rows, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    column = first + tl.arange(0, BLOCK)
    there = (row < rows)[:, None] & (column < WIDTH)[None, :]
    tl.store(x + row[:, None] * WIDTH + column[None, :], rounded(value, x.dtype.element_ty), there)


@triton.jit
def load_vector(x, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[1, BLOCK] of x [WIDTH] in float32."""
    column = first + tl.arange(0, BLOCK)
    return tl.load(x + column, column < WIDTH, 0.0).to(tl.float32)[None, :]


@triton.jit
def load_matrix(
    matrix, first_row, first_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """[R, C] of a matrix [ROWS, COLUMNS]."""
    row, column = first_row + tl.arange(0, R), first_column + tl.arange(0, C)
    at = matrix + row[:, None] * COLUMNS + column[None, :]
    if ROWS % R == 0 and COLUMNS % C == 0:
        return tl.load(at)
    return tl.load(at, (row < ROWS)[:, None] & (column < COLUMNS)[None, :], 0.0)


@triton.jit
def store_sum(sums, value, row, rows, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of value [BLOCK_M, BLOCK] over the rows that there are, to sums [WIDTH]."""
    column = first + tl.arange(0, BLOCK)
    value = tl.where((row < rows)[:, None], value.to(tl.float32), 0.0)
    tl.store(sums + column, tl.sum(value, 0), column < WIDTH)


@triton.jit
def as_operand(x, OPERAND: tl.constexpr):
    if x.dtype == OPERAND:
        return x
    return rounded(x.to(tl.float32), OPERAND)


@triton.jit
def multiply(x, matrix, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """x matrix in float32, of factors in OPERAND."""
    return product(as_operand(x, OPERAND), as_operand(matrix, OPERAND), PRECISION)


@triton.jit
def project(
    x, row, rows, step, matrix, first, K: tl.constexpr, N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """W x for rows of x [rows, K] and W [N, K]: BLOCK_N of its columns, from `first` on."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        weight = load_matrix(matrix, first, k, N, K, BLOCK_N, BLOCK_K)
        total += multiply(load_rows(x, row, rows, step, k, K, BLOCK_K), tl.trans(weight), OPERAND, PRECISION)
    return total


@triton.jit
def project_back(
    dy, row, rows, step, matrix, first, N: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of x in W x: BLOCK_K of its columns, from `first` on."""
    total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for n in range(0, N, BLOCK_N):
        weight = load_matrix(matrix, n, first, N, K, BLOCK_N, BLOCK_K)
        total += multiply(load_rows(dy, row, rows, step, n, N, BLOCK_N), weight, OPERAND, PRECISION)
    return total


@triton.jit
def normalize(x, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr):
    """What the norm's weight multiplies, and what divides its gradient: x and 1 where EPS is negative."""
    inverse = tl.full((x.shape[0],), 1.0, tl.float32)
    if EPS >= 0:
        there = (tl.arange(0, BLOCK) < WIDTH)[None, :]
        x = tl.where(there, x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) / WIDTH + EPS)
        x = x * inverse[:, None]
    return x, inverse


@triton.jit
def normalize_backward(dy, normal, inverse, weight, WIDTH: tl.constexpr, EPS: tl.constexpr):
    """The gradient of x in N(x), from what `normalize` found."""
    dx = dy * weight
    if EPS >= 0:
        along = tl.sum(dx * normal, 1) / WIDTH
        dx = (dx - (tl.sum(dx, 1) / WIDTH)[:, None] - normal * along[:, None]) * inverse[:, None]
    return dx


@triton.jit
def dropped(
    value, rng_state, row, first, threshold, factor,
    SITE: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dropout(value), the columns from `first` on, at the place SITE of the layer."""
    if WIDTH % 4 == 0:  # no four elements of one random block are of two rows
        blocks = row[:, None] * (WIDTH // 4) + (first // 4 + tl.arange(0, BLOCK // 4))[None, :]
        keep = kept_in_fours(rng_state, blocks, threshold, BLOCK_M, BLOCK, SITE)
    else:
        keep = kept(rng_state, row[:, None] * WIDTH + (first + tl.arange(0, BLOCK))[None, :], threshold, SITE)
    return tl.where(keep, value * factor, 0.0)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        y = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh(z)) / 2 is the sigmoid of 2 z
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        y = x
    return y


@triton.jit
def activate_backward(dy, x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        dx = tl.where(x <= 0, 0.0, dy)
    elif ACTIVATION == "silu":
        gate = tl.sigmoid(x)
        dx = dy * gate * (1.0 + x * (1.0 - gate))
    elif ACTIVATION == "gelu_tanh":
        gate = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        slope = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
        dx = dy * gate * (1.0 + x * (1.0 - gate) * slope)
    else:
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        dx = dy * (0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density)
    return dx
