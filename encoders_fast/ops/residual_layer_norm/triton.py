"""residual_layer_norm in Triton: a program has a few rows in registers, from the first read to the last write.

Backward, as many programs as the GPU runs at a time walk over the rows and sum the parameters' gradients on their way;
a second kernel adds up what each has, in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._dropout import scale
from .._triton import MOST_WARPS, launch, multiprocessors
from .._triton_language import add_up, kept, kept_in_fours, rounded


@triton.jit
def _dropped(
    value, rng_state, row, column, D, threshold, factor,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, FOURS: tl.constexpr,
):  # fmt: skip
    """dropout(value) [ROWS, BLOCK]. FOURS: no four elements of one random block are of two rows."""
    if FOURS:
        blocks = row[:, None] * (D // 4) + tl.arange(0, BLOCK // 4)[None, :]
        keep = kept_in_fours(rng_state, blocks, threshold, ROWS, BLOCK)
    else:
        keep = kept(rng_state, row[:, None] * D + column[None, :], threshold)
    return tl.where(keep, value * factor, 0.0)


@triton.jit
def _forward(
    x, residual, weight, bias, rng_state, y, s, mean, rstd,
    rows, D, x_step, residual_step, eps, threshold, factor,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, DROPS: tl.constexpr, FOURS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = (row < rows)[:, None] & (column < D)[None, :]
    value = tl.load(x + row[:, None] * x_step + column[None, :], there, 0.0).to(tl.float32)
    if DROPS:
        value = _dropped(value, rng_state, row, column, D, threshold, factor, ROWS, BLOCK, FOURS)
    value += tl.load(residual + row[:, None] * residual_step + column[None, :], there, 0.0).to(tl.float32)
    at = row[:, None] * D + column[None, :]
    stored = rounded(value, s.dtype.element_ty)
    tl.store(s + at, stored, there)
    value = stored.to(tl.float32)
    average = tl.sum(value, 1) / D
    centred = tl.where(there, value - average[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    tl.store(mean + row, average, row < rows)
    tl.store(rstd + row, inverse, row < rows)
    factors = tl.load(weight + column, column < D, 0.0).to(tl.float32)
    addends = tl.load(bias + column, column < D, 0.0).to(tl.float32)
    value = centred * inverse[:, None] * factors[None, :] + addends[None, :]
    tl.store(y + at, rounded(value, y.dtype.element_ty), there)


@triton.jit
def _backward(
    dy, ds, s, weight, mean, rstd, rng_state, dx, dresidual, sums,
    rows, D, dy_step, ds_step, threshold, factor,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, DROPS: tl.constexpr, FOURS: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    factors = tl.load(weight + column, column < D, 0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK,), tl.float32)
    dbias = tl.zeros((BLOCK,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        there = (row < rows)[:, None] & (column < D)[None, :]
        at = row[:, None] * D + column[None, :]
        average = tl.load(mean + row, row < rows, 0.0)
        inverse = tl.load(rstd + row, row < rows, 0.0)
        normal = tl.load(s + at, there, 0.0).to(tl.float32) - average[:, None]
        normal = tl.where(there, normal * inverse[:, None], 0.0)
        gradient = tl.load(dy + row[:, None] * dy_step + column[None, :], there, 0.0).to(tl.float32)
        dweight += tl.sum(gradient * normal, 0)
        dbias += tl.sum(gradient, 0)
        gradient *= factors[None, :]
        along = tl.sum(gradient * normal, 1) / D
        value = (gradient - (tl.sum(gradient, 1) / D)[:, None] - normal * along[:, None]) * inverse[:, None]
        if ADDS:
            value += tl.load(ds + row[:, None] * ds_step + column[None, :], there, 0.0).to(tl.float32)
        tl.store(dresidual + at, rounded(value, dresidual.dtype.element_ty), there)
        if DROPS:
            value = _dropped(value, rng_state, row, column, D, threshold, factor, ROWS, BLOCK, FOURS)
            tl.store(dx + at, rounded(value, dx.dtype.element_ty), there)
    at = sums + tl.program_id(0).to(tl.int64) * 2 * D + column
    tl.store(at, dweight, column < D)
    tl.store(at + D, dbias, column < D)


def _tile(D: int, elements: int) -> dict[str, int]:
    """Rows and columns of a program, 4096 elements where rows are narrower, and its warps: `elements` to a thread."""
    block = max(triton.next_power_of_2(D), 16)
    rows = min(max(4096 // block, 1), 32)
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(max(rows * block // (32 * elements), 1), MOST_WARPS)}


def _rows(tensor: Tensor) -> Tensor:
    """[rows, D] with neighbouring elements in a row; a copy only where strides leave no other way."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def residual_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout_p: float, rng_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    D = x.shape[-1]
    y, s = x.new_empty(x.shape), x.new_empty(x.shape)
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    x_rows, residual_rows = _rows(x), _rows(residual)
    tile, drops = _tile(D, 32), dropout_p > 0
    state = rng_state.contiguous() if drops and rng_state is not None else x
    launch(
        x.device,
        _forward,
        [triton.cdiv(len(x_rows), tile["ROWS"])],
        *(x_rows, residual_rows, weight.contiguous(), bias.contiguous(), state, y, s, mean, rstd),
        *(len(x_rows), D, x_rows.stride(0), residual_rows.stride(0), eps),
        *(round(dropout_p * 2**32), scale(dropout_p)),
        DROPS=drops,
        FOURS=D % 4 == 0,
        **tile,
    )
    return y, s, mean, rstd


def residual_layer_norm_backward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout_p: float,
    rng_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    D = s.shape[-1]
    drops = dropout_p > 0
    state = rng_state.contiguous() if drops and rng_state is not None else s
    dresidual = s.new_empty(s.shape)
    dx = s.new_empty(s.shape if drops else 0)
    dweight, dbias = weight.new_empty(D), weight.new_empty(D)
    dy_rows, ds_rows = _rows(dy), _rows(dy if ds is None else ds)
    rows, tile = len(dy_rows), _tile(D, 16)
    programs = min(triton.cdiv(rows, tile["ROWS"]), 2 * multiprocessors(s.device))
    sums = s.new_empty((programs, 2, D), dtype=torch.float32)
    launch(
        s.device,
        _backward,
        [programs],
        *(dy_rows, ds_rows, s.contiguous(), weight.contiguous(), mean.contiguous(), rstd.contiguous(), state),
        *(dx, dresidual, sums, rows, D, dy_rows.stride(0), ds_rows.stride(0)),
        *(round(dropout_p * 2**32), scale(dropout_p)),
        DROPS=drops,
        FOURS=D % 4 == 0,
        ADDS=ds is not None,
        **tile,
    )
    launch(
        s.device,
        add_up,
        [triton.cdiv(2 * D, 64)],
        *(sums, dweight, dbias, D, programs),
        COLUMNS=64,
        PARTS=16,
        num_warps=4,
    )
    return dx, dresidual, dweight, dbias
