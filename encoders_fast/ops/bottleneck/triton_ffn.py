"""bottleneck_ffn on a tile of rows. The narrow stream u stays in registers, in float32, from the attention's output to
the last norm; of a feed-forward block's hidden layer there is a chunk of columns at a time."""

from __future__ import annotations

import triton
import triton.language as tl

from .reference import ATTENTION_OUTPUT, LAYER_OUTPUT
from .triton_parts import (
    activate,
    activate_backward,
    as_operand,
    dropped,
    load_matrix,
    load_rows,
    load_vector,
    multiply,
    normalize,
    normalize_backward,
    project,
    store_rows,
    store_sum,
)

_ATTENTION = tl.constexpr(ATTENTION_OUTPUT)
_LAYER = tl.constexpr(LAYER_OUTPUT)


@triton.jit
def _wide_sum(
    operand, h, h_step, matrix, bias, rng_state, row, rows, threshold, factor, first,
    H: tl.constexpr, D: tl.constexpr, DROPS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """h + dropout(W_out u + b_out), the columns from `first` on."""
    x = multiply(operand, tl.trans(load_matrix(matrix, first, 0, H, D, CHUNK, BLOCK_D)), OPERAND, PRECISION)
    x += load_vector(bias, first, H, CHUNK)
    if DROPS:
        x = dropped(x, rng_state, row, first, threshold, factor, _LAYER, H, BLOCK_M, CHUNK)
    return x + load_rows(h, row, rows, h_step, first, H, CHUNK)


@triton.jit
def _wide_statistics(
    operand, h, h_step, matrix, bias, rng_state, row, rows, threshold, factor,
    H: tl.constexpr, D: tl.constexpr, EPS: tl.constexpr, DROPS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / deviation of rows that are too wide for registers: chunks' own, put together as Chan et al. do."""
    mean, squares = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    for first in range(0, H, CHUNK):
        x = _wide_sum(
            operand, h, h_step, matrix, bias, rng_state, row, rows, threshold, factor, first,
            H, D, DROPS, OPERAND, PRECISION, BLOCK_M, BLOCK_D, CHUNK,
        )  # fmt: skip
        count = tl.minimum(H - first, CHUNK).to(tl.float32)
        average = tl.sum(x, 1) / count
        x = tl.where((first + tl.arange(0, CHUNK) < H)[None, :], x - average[:, None], 0.0)
        apart, share = average - mean, count / (first + count)
        squares += tl.sum(x * x, 1) + apart * apart * (first * share)
        mean += apart * share
    return mean, 1.0 / tl.sqrt(squares / H + EPS)


@triton.jit
def forward(
    attention, u0, h, matrices, biases, norms, rng_state, y,
    streams, befores, normals, inverses, rows, attention_step, u0_step, h_step, threshold, factor,
    H: tl.constexpr, D: tl.constexpr, A: tl.constexpr, F: tl.constexpr, BLOCKS: tl.constexpr, EPS: tl.constexpr,
    ACTIVATION: tl.constexpr, DROPS: tl.constexpr, WIDE: tl.constexpr, SAVES: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """SAVES, for the backward pass: each block's u and what it activates, and what each norm scales."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    x = project(attention, row, rows, attention_step, matrices[0], 0, A, D, BLOCK_M, CHUNK, BLOCK_D, OPERAND, PRECISION)
    x += load_vector(biases[0], 0, D, BLOCK_D)
    if DROPS and not WIDE:
        x = dropped(x, rng_state, row, 0, threshold, factor, _ATTENTION, D, BLOCK_M, BLOCK_D)
    u = x + load_rows(u0, row, rows, u0_step, 0, D, BLOCK_D)
    for i in tl.static_range(BLOCKS + 1):
        if i > 0:
            operand = as_operand(u, OPERAND)
            x = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            for first in range(0, F, CHUNK):
                expand = load_matrix(matrices[2 * i - 1], first, 0, F, D, CHUNK, BLOCK_D)
                before = multiply(operand, tl.trans(expand), OPERAND, PRECISION)
                before += load_vector(biases[2 * i - 1], first, F, CHUNK)
                if SAVES:
                    store_rows(befores[i - 1], before, row, rows, first, F, CHUNK)
                contract = load_matrix(matrices[2 * i], 0, first, D, F, BLOCK_D, CHUNK)
                x += multiply(activate(before, ACTIVATION), tl.trans(contract), OPERAND, PRECISION)
            x += load_vector(biases[2 * i], 0, D, BLOCK_D)
            if DROPS and not WIDE and i == BLOCKS:
                x = dropped(x, rng_state, row, 0, threshold, factor, _LAYER, D, BLOCK_M, BLOCK_D)
            u += x
        u, inverse = normalize(u, D, BLOCK_D, EPS[i])
        if SAVES:
            store_rows(normals[i], u, row, rows, 0, D, BLOCK_D)
            tl.store(inverses[i] + row, inverse, row < rows)
        u = u * load_vector(norms[2 * i], 0, D, BLOCK_D) + load_vector(norms[2 * i + 1], 0, D, BLOCK_D)
        if SAVES:
            store_rows(streams[i], u, row, rows, 0, D, BLOCK_D)
    if WIDE:
        operand = as_operand(u, OPERAND)
        if EPS[BLOCKS + 1] >= 0:
            mean, inverse = _wide_statistics(
                operand, h, h_step, matrices[2 * BLOCKS + 1], biases[2 * BLOCKS + 1], rng_state, row, rows,
                threshold, factor, H, D, EPS[BLOCKS + 1], DROPS, OPERAND, PRECISION, BLOCK_M, BLOCK_D, CHUNK,
            )  # fmt: skip
            if SAVES:
                tl.store(inverses[BLOCKS + 1] + row, inverse, row < rows)
        for first in range(0, H, CHUNK):
            value = _wide_sum(
                operand, h, h_step, matrices[2 * BLOCKS + 1], biases[2 * BLOCKS + 1], rng_state, row, rows,
                threshold, factor, first, H, D, DROPS, OPERAND, PRECISION, BLOCK_M, BLOCK_D, CHUNK,
            )  # fmt: skip
            if EPS[BLOCKS + 1] >= 0:
                value = (value - mean[:, None]) * inverse[:, None]
            if SAVES:
                store_rows(normals[BLOCKS + 1], value, row, rows, first, H, CHUNK)
            value *= load_vector(norms[2 * BLOCKS + 2], first, H, CHUNK)
            value += load_vector(norms[2 * BLOCKS + 3], first, H, CHUNK)
            store_rows(y, value, row, rows, first, H, CHUNK)
    else:
        store_rows(y, u, row, rows, 0, D, BLOCK_D)


@triton.jit
def _out_backward(
    dy, dy_step, matrix, weight, normal, inverses, rng_state, dh, dout, bias_sums, norm_sums, row, rows,
    threshold, factor, H: tl.constexpr, D: tl.constexpr, EPS: tl.constexpr, DROPS: tl.constexpr, WANTED: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dh, and the gradient of u in N_out(dropout(W_out u + b_out) + h)."""
    if EPS >= 0:
        inverse = tl.load(inverses + row, row < rows, 0.0)
        average, along = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
        for first in range(0, H, CHUNK):
            dx = load_rows(dy, row, rows, dy_step, first, H, CHUNK).to(tl.float32) * load_vector(
                weight, first, H, CHUNK
            )
            average += tl.sum(dx, 1) / H
            along += tl.sum(dx * load_rows(normal, row, rows, H, first, H, CHUNK).to(tl.float32), 1) / H
    du = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(0, H, CHUNK):
        gradient = load_rows(dy, row, rows, dy_step, first, H, CHUNK).to(tl.float32)
        dx = gradient * load_vector(weight, first, H, CHUNK)
        if WANTED or EPS >= 0:
            scaled = load_rows(normal, row, rows, H, first, H, CHUNK).to(tl.float32)
        if EPS >= 0:
            dx = (dx - average[:, None] - scaled * along[:, None]) * inverse[:, None]
        store_rows(dh, dx, row, rows, first, H, CHUNK)
        if WANTED:
            store_sum(norm_sums, gradient * scaled, row, rows, first, H, CHUNK)
            store_sum(norm_sums + H, gradient, row, rows, first, H, CHUNK)
        if DROPS:
            dx = dropped(dx, rng_state, row, first, threshold, factor, _LAYER, H, BLOCK_M, CHUNK)
        if WANTED:
            store_sum(bias_sums, dx, row, rows, first, H, CHUNK)
            if DROPS:
                store_rows(dout, dx, row, rows, first, H, CHUNK)
        du += multiply(dx, load_matrix(matrix, first, 0, H, D, CHUNK, BLOCK_D), OPERAND, PRECISION)
    return du


@triton.jit
def backward(
    dy, matrices, norms, rng_state, befores, normals, inverses, dattention, du0, dh,
    dattended, dexpands, dcontracts, dout, sums, rows, dy_step, threshold, factor,
    H: tl.constexpr, D: tl.constexpr, A: tl.constexpr, F: tl.constexpr, BLOCKS: tl.constexpr, EPS: tl.constexpr,
    ACTIVATION: tl.constexpr, DROPS: tl.constexpr, WIDE: tl.constexpr, WANTED: tl.constexpr, VECTORS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradients of the activations, of every product's output, and of this tile's rows the sums that are the
    gradients of biases and norms: sums [programs, VECTORS], first all biases and then all norms."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    if WANTED:
        sums += tl.program_id(0).to(tl.int64) * VECTORS
    norm_sums: tl.constexpr = D + BLOCKS * (F + D) + (H if WIDE else 0)
    if WIDE:
        du = _out_backward(
            dy, dy_step, matrices[2 * BLOCKS + 1], norms[2 * BLOCKS + 2], normals[BLOCKS + 1], inverses[BLOCKS + 1],
            rng_state, dh, dout, sums + D + BLOCKS * (F + D), sums + norm_sums + 2 * D * (BLOCKS + 1), row, rows,
            threshold, factor, H, D, EPS[BLOCKS + 1], DROPS, WANTED, OPERAND, PRECISION, BLOCK_M, BLOCK_D, CHUNK,
        )  # fmt: skip
    else:
        du = load_rows(dy, row, rows, dy_step, 0, D, BLOCK_D).to(tl.float32)
    for i in tl.static_range(BLOCKS, -1, -1):
        normal = load_rows(normals[i], row, rows, D, 0, D, BLOCK_D).to(tl.float32)
        if WANTED:
            store_sum(sums + norm_sums + 2 * D * i, du * normal, row, rows, 0, D, BLOCK_D)
            store_sum(sums + norm_sums + 2 * D * i + D, du, row, rows, 0, D, BLOCK_D)
        inverse = tl.load(inverses[i] + row, row < rows, 0.0)
        du = normalize_backward(du, normal, inverse, load_vector(norms[2 * i], 0, D, BLOCK_D), D, EPS[i])
        dx = du
        if DROPS and not WIDE and (i == 0 or i == BLOCKS):
            dx = dropped(du, rng_state, row, 0, threshold, factor, _LAYER if i > 0 else _ATTENTION, D, BLOCK_M, BLOCK_D)
        if WANTED:
            store_sum(sums + i * (F + D), dx, row, rows, 0, D, BLOCK_D)
        operand = as_operand(dx, OPERAND)
        if i > 0:
            if WANTED:
                store_rows(dcontracts[i - 1], dx, row, rows, 0, D, BLOCK_D)
            for first in range(0, F, CHUNK):
                contract = load_matrix(matrices[2 * i], 0, first, D, F, BLOCK_D, CHUNK)
                before = load_rows(befores[i - 1], row, rows, F, first, F, CHUNK).to(tl.float32)
                dbefore = activate_backward(multiply(operand, contract, OPERAND, PRECISION), before, ACTIVATION)
                if WANTED:
                    store_rows(dexpands[i - 1], dbefore, row, rows, first, F, CHUNK)
                    store_sum(sums + i * (F + D) - F, dbefore, row, rows, first, F, CHUNK)
                expand = load_matrix(matrices[2 * i - 1], first, 0, F, D, CHUNK, BLOCK_D)
                du += multiply(dbefore, expand, OPERAND, PRECISION)
    store_rows(du0, du, row, rows, 0, D, BLOCK_D)
    if WANTED and DROPS and not WIDE:
        store_rows(dattended, dx, row, rows, 0, D, BLOCK_D)
    for first in range(0, A, CHUNK):
        output = load_matrix(matrices[0], 0, first, D, A, BLOCK_D, CHUNK)
        store_rows(dattention, multiply(operand, output, OPERAND, PRECISION), row, rows, first, A, CHUNK)
