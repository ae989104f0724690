"""bottleneck_input on a tile of rows: what the grid's second dimension counts is one bottleneck, or one of the products
that take h itself. They do not wait for each other; where there are few rows they are what fills the GPU."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_parts import (
    load_matrix,
    load_rows,
    load_vector,
    multiply,
    normalize,
    normalize_backward,
    project,
    project_back,
    store_rows,
    store_sum,
)


@triton.jit
def forward(
    h, matrices, biases, norms, outputs, narrow, normals, inverses, rows, h_step,
    H: tl.constexpr, WIDTHS: tl.constexpr, OUTPUTS: tl.constexpr, EPS: tl.constexpr,
    BOTTLENECKS: tl.constexpr, OF_NARROW: tl.constexpr, SAVES: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The first OF_NARROW outputs take the last bottleneck's stream, the others h. WIDTHS are the bottlenecks'."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(1)
    for i in tl.static_range(BOTTLENECKS):
        if part == i:
            x = project(
                h, row, rows, h_step, matrices[3 + i], 0, H, WIDTHS[i], BLOCK_M, CHUNK, BLOCK_D, OPERAND, PRECISION
            )
            x += load_vector(biases[3 + i], 0, WIDTHS[i], BLOCK_D)
            x, inverse = normalize(x, WIDTHS[i], BLOCK_D, EPS[i])
            if SAVES:
                store_rows(normals[i], x, row, rows, 0, WIDTHS[i], BLOCK_D)
                tl.store(inverses[i] + row, inverse, row < rows)
            x *= load_vector(norms[2 * i], 0, WIDTHS[i], BLOCK_D)
            x += load_vector(norms[2 * i + 1], 0, WIDTHS[i], BLOCK_D)
            if SAVES or i == 0:
                store_rows(narrow[i], x, row, rows, 0, WIDTHS[i], BLOCK_D)
            if i == BOTTLENECKS - 1:
                for j in tl.static_range(OF_NARROW):
                    for first in range(0, OUTPUTS[j], CHUNK):
                        weight = load_matrix(matrices[j], first, 0, OUTPUTS[j], WIDTHS[i], CHUNK, BLOCK_D)
                        y = multiply(x, tl.trans(weight), OPERAND, PRECISION)
                        y += load_vector(biases[j], first, OUTPUTS[j], CHUNK)
                        store_rows(outputs[j], y, row, rows, first, OUTPUTS[j], CHUNK)
    for j in tl.static_range(OF_NARROW, 3):
        if part == BOTTLENECKS + j - OF_NARROW:
            for first in range(0, OUTPUTS[j], BLOCK_D):
                y = project(
                    h, row, rows, h_step, matrices[j], first, H, OUTPUTS[j],
                    BLOCK_M, CHUNK, BLOCK_D, OPERAND, PRECISION,
                )  # fmt: skip
                y += load_vector(biases[j], first, OUTPUTS[j], BLOCK_D)
                store_rows(outputs[j], y, row, rows, first, OUTPUTS[j], BLOCK_D)


@triton.jit
def _through_norm(
    dy, i: tl.constexpr, norms, normals, inverses, dnarrow, sums, row, rows,
    WIDTHS: tl.constexpr, EPS: tl.constexpr, FIRST_BIAS: tl.constexpr, FIRST_NORM: tl.constexpr,
    WANTED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient in front of bottleneck i's norm, from that behind it."""
    normal = load_rows(normals[i], row, rows, WIDTHS[i], 0, WIDTHS[i], BLOCK_D).to(tl.float32)
    inverse = tl.load(inverses[i] + row, row < rows, 0.0)
    dx = normalize_backward(dy, normal, inverse, load_vector(norms[2 * i], 0, WIDTHS[i], BLOCK_D), WIDTHS[i], EPS[i])
    if WANTED:
        store_sum(sums + FIRST_NORM, dy * normal, row, rows, 0, WIDTHS[i], BLOCK_D)
        store_sum(sums + FIRST_NORM + WIDTHS[i], dy, row, rows, 0, WIDTHS[i], BLOCK_D)
        store_sum(sums + FIRST_BIAS, dx, row, rows, 0, WIDTHS[i], BLOCK_D)
        store_rows(dnarrow[i], dx, row, rows, 0, WIDTHS[i], BLOCK_D)
    return dx


@triton.jit
def backward(
    doutputs, steps, du0, du0_step, matrices, norms, normals, inverses, dh, dnarrow, sums, rows,
    H: tl.constexpr, WIDTHS: tl.constexpr, OUTPUTS: tl.constexpr, EPS: tl.constexpr,
    BOTTLENECKS: tl.constexpr, OF_NARROW: tl.constexpr, WANTED: tl.constexpr, VECTORS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dh, and of this tile's rows the sums that are the gradients of biases and norms: sums [programs, VECTORS]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    if WANTED:
        sums += tl.program_id(0).to(tl.int64) * VECTORS
        for j in tl.static_range(3):
            for first in range(0, OUTPUTS[j], CHUNK):
                dy = load_rows(doutputs[j], row, rows, steps[j], first, OUTPUTS[j], CHUNK)
                store_sum(sums + j * OUTPUTS[0], dy, row, rows, first, OUTPUTS[j], CHUNK)
    biases: tl.constexpr = 2 * OUTPUTS[0] + OUTPUTS[2]
    if OF_NARROW > 0:
        last: tl.constexpr = BOTTLENECKS - 1
        dlast = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for j in tl.static_range(OF_NARROW):
            dlast += project_back(
                doutputs[j], row, rows, steps[j], matrices[j], 0, OUTPUTS[j], WIDTHS[last],
                BLOCK_M, CHUNK, BLOCK_D, OPERAND, PRECISION,
            )  # fmt: skip
    if BOTTLENECKS > 0:
        dx0 = load_rows(du0, row, rows, du0_step, 0, WIDTHS[0], BLOCK_D).to(tl.float32)
        if OF_NARROW == 3:
            dx0 += dlast
        norm: tl.constexpr = biases + (WIDTHS[0] if BOTTLENECKS == 1 else WIDTHS[0] + WIDTHS[1])
        dx0 = _through_norm(
            dx0, 0, norms, normals, inverses, dnarrow, sums, row, rows, WIDTHS, EPS, biases, norm, WANTED, BLOCK_D
        )
    if BOTTLENECKS > 1:
        dx1 = _through_norm(
            dlast, 1, norms, normals, inverses, dnarrow, sums, row, rows, WIDTHS, EPS,
            biases + WIDTHS[0], norm + 2 * WIDTHS[0], WANTED, BLOCK_D,
        )  # fmt: skip
    for first in range(0, H, CHUNK):
        dx = tl.zeros((BLOCK_M, CHUNK), tl.float32)
        if BOTTLENECKS > 0:
            dx += multiply(dx0, load_matrix(matrices[3], 0, first, WIDTHS[0], H, BLOCK_D, CHUNK), OPERAND, PRECISION)
        if BOTTLENECKS > 1:
            dx += multiply(dx1, load_matrix(matrices[4], 0, first, WIDTHS[1], H, BLOCK_D, CHUNK), OPERAND, PRECISION)
        for j in tl.static_range(OF_NARROW, 3):
            dx += project_back(
                doutputs[j], row, rows, steps[j], matrices[j], first, OUTPUTS[j], H,
                BLOCK_M, CHUNK, CHUNK, OPERAND, PRECISION,
            )  # fmt: skip
        store_rows(dh, dx, row, rows, first, H, CHUNK)
