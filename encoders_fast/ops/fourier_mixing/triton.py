"""fourier_mixing in Triton: the transform over the tokens into half a spectrum, then over the width to whole rows.

All intermediate values are float32, and half of x's elements in number; so are products, but bfloat16's are in TF32,
which has more of its bits and, unlike float16, the range that gradients need.

Bytes decide the time: (8, 512, 768) in bfloat16 is read twice and written once, 6.3 MB each, the second time from the
cache, as the 6.5 MB of the spectrum are. The products are 0.8 GFLOP with all padding.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .._triton import MOST_WARPS, launch, multiprocessors, precision
from .._triton_language import add_up
from . import triton_kernels as kernels
from .triton_plans import Plan, plan, power, split_tokens, split_width


class _Finish(NamedTuple):
    """What becomes of Y: `y` is Y, plus `x` with `adds`, normalized with `weight`. What is not there is `x`."""

    x: Tensor
    y: Tensor
    adds: bool
    weight: Tensor | None = None
    bias: Tensor | None = None
    normalized: Tensor | None = None
    rstd: Tensor | None = None
    eps: float = 0.0

    def tensors(self) -> tuple[Tensor, ...]:
        optional = (self.weight, self.bias, self.y, self.normalized, self.rstd)
        return self.x, *(self.x if tensor is None else tensor for tensor in optional)

    def constants(self) -> dict[str, bool]:
        return {"ADDS": self.adds, "NORMALIZES": self.weight is not None, "KEEPS": self.normalized is not None}


def _precision(dtype: torch.dtype) -> str:
    """Four roundings to TF32 are a quarter of bfloat16's own rounding, but twice float16's."""
    if dtype == torch.bfloat16 and torch.version.hip is None:
        return "tf32"
    return precision(torch.float32)


def _spectrum(x: Tensor, norm: str, precise: str) -> Tensor:
    """[B, T / 2 + 1, 2, pitch]"""
    B, T, D = x.shape
    made = plan(*split_tokens(T, precise == "tf32"), x.device, precise == "tf32")
    pitch = triton.cdiv(D // 2 + 1, 16) * 16
    spectrum = x.new_empty((B, T // 2 + 1, 2, pitch), dtype=torch.float32)
    scale = 1 / math.sqrt(T * D) if norm == "ortho" else 1.0
    if made.N2 == 1:
        _first(x, spectrum, made, pitch, scale, precise)
    elif _fits(x, made):
        _both(x, spectrum, made, pitch, scale, precise)
    else:
        z = x.new_empty((B, made.N1 // 2 + 1, made.N2, 2, pitch), dtype=torch.float32)
        _first(x, z, made, pitch, scale, precise)
        _second(z, spectrum, made, T, D, precise)
    return spectrum


def _first(x: Tensor, z: Tensor, made: Plan, pitch: int, scale: float, precise: str) -> None:
    B, T, D = x.shape
    half = made.N1 // 2 + 1
    tile, columns = min(power(half), 32), min(power(D // 2 + 1), 64)
    launch(
        x.device,
        kernels._tokens_first,
        [B * made.N2 * triton.cdiv(half, tile), triton.cdiv(D // 2 + 1, columns)],
        *(x, made.first, made.twiddle, z, T, D, made.N1, made.N2, pitch, *x.stride(), scale),
        TILE=tile,
        COLUMNS=columns,
        # Looked-up entries, and factors of three products, are more registers.
        STEP=min(power(made.N1), 32 if precise == "tf32" and made.stored else 16),
        STORED=made.stored,
        TURNS=made.N2 > 1,
        PRECISION=precise,
        num_warps=4,
        num_stages=2 if made.stored else 1,
    )


def _second(z: Tensor, spectrum: Tensor, made: Plan, T: int, D: int, precise: str) -> None:
    B, half, N2, _, pitch = z.shape
    tile, columns = min(power(N2), 32), min(power(D // 2 + 1), 64)
    launch(
        z.device,
        kernels._tokens_second,
        [B * half * triton.cdiv(N2, tile), triton.cdiv(D // 2 + 1, columns)],
        *(z, made.second, spectrum, T, D, made.N1, N2, pitch),
        TILE=tile,
        COLUMNS=columns,
        STEP=min(power(N2), 32 if precise == "tf32" else 16),
        PRECISION=precise,
        num_warps=4,
        num_stages=2,
    )


def _fits(x: Tensor, made: Plan) -> bool:
    """Whether all tokens of a few columns fit a program, 8192 values, and there are enough columns for the GPU."""
    B, _, D = x.shape
    small = made.N2 in (16, 32) and power(made.N1) * made.N2 <= 512
    return small and B * triton.cdiv(D // 2 + 1, 16) >= multiprocessors(x.device)


def _both(x: Tensor, spectrum: Tensor, made: Plan, pitch: int, scale: float, precise: str) -> None:
    B, T, D = x.shape
    # 32 bytes of a row at the least, which is what memory moves; three products have room for no more.
    columns = 16 if precise == "tf32" else 8
    launch(
        x.device,
        kernels._tokens_in_two,
        [B, triton.cdiv(D // 2 + 1, columns)],
        *(x, made.first, made.twiddle, made.second, spectrum, T, D, pitch, *x.stride(), scale),
        N1=made.N1,
        N2=made.N2,
        HALF=power(made.N1 // 2 + 1),
        BLOCK=power(made.N1),
        COLUMNS=columns,
        PRECISION=precise,
        num_warps=columns,
    )


def _rows(spectrum: Tensor, finish: _Finish, precise: str) -> None:
    """Over the width, and on to `finish`."""
    _, T, D = finish.x.shape
    tf32 = precise == "tf32"
    N1, N2 = split_width(D)
    if N2 == 1:
        _rows_dense(spectrum, finish, precise)
        return
    made = plan(N1, N2, spectrum.device, tf32)
    B, half_tokens, _, pitch = spectrum.shape
    block, rows = power(N1), B * half_tokens
    # Each factor of three TF32 products is in registers twice. More rows a program would spill.
    places = block * N2
    ROWS = max((4096 if tf32 else 1024) // places, 1)
    launch(
        spectrum.device,
        kernels._width_in_two,
        [triton.cdiv(rows, ROWS)],
        *(spectrum, made.first, made.twiddle, made.second, *finish.tensors()),
        *(rows, T, D, pitch, *finish.x.stride(), finish.eps),
        ROWS=ROWS,
        N1=N1,
        N2=N2,
        HALF=power(N1 // 2 + 1),
        BLOCK=block,
        **finish.constants(),
        PRECISION=precise,
        num_warps=8 if tf32 or places > 1024 else 4,
    )


# A program of the dense kernel has rows of up to so many columns whole.
WHOLE = 128


def _rows_dense(spectrum: Tensor, finish: _Finish, precise: str) -> None:
    _, T, D = finish.x.shape
    B, half_tokens, _, pitch = spectrum.shape
    made = plan(D, 1, spectrum.device, precise == "tf32")
    rows, columns = B * half_tokens, min(power(D), WHOLE if D <= WHOLE else 64)
    ROWS = 32 if columns <= 64 else 16
    launch(
        spectrum.device,
        kernels._width_dense,
        [triton.cdiv(rows, ROWS), triton.cdiv(D, columns)],
        *(spectrum, made.first, *finish.tensors()),
        *(rows, T, D, pitch, *finish.x.stride(), finish.eps),
        ROWS=ROWS,
        COLUMNS=columns,
        STEP=16,
        STORED=made.stored,
        **finish.constants(),
        PRECISION=precise,
        num_warps=8 if columns > 64 else 4,
        num_stages=2,
    )


def _tile(D: int) -> dict[str, int]:
    """Whole rows of a program, 4096 elements where they are narrower, and its warps: 16 elements to a thread."""
    block = power(D)
    rows = min(max(4096 // block, 1), 32)
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(max(rows * block // 512, 1), MOST_WARPS)}


def fourier_mixing(x: Tensor, norm: str) -> Tensor:
    precise = _precision(x.dtype)
    y = x.new_empty(x.shape)
    _rows(_spectrum(x, norm, precise), _Finish(x, y, adds=False), precise)
    return y


def fourier_mixing_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, D = x.shape
    precise = _precision(x.dtype)
    y, normalized = x.new_empty(x.shape), x.new_empty(x.shape if keep else (0,))
    rstd = x.new_empty((B, T) if keep else (0,), dtype=torch.float32)
    parameters = (weight.contiguous(), bias.contiguous(), normalized if keep else None, rstd if keep else None)
    spectrum = _spectrum(x, norm, precise)
    if D <= WHOLE or split_width(D)[1] > 1:
        _rows(spectrum, _Finish(x, y, True, *parameters, eps), precise)
        return y, normalized, rstd
    s = x.new_empty(x.shape, dtype=torch.float32)
    _rows(spectrum, _Finish(x, s, True), precise)
    tile = _tile(D)
    optional = (normalized, rstd) if keep else (s, s)
    launch(
        x.device,
        kernels._normalize,
        [triton.cdiv(B * T, tile["ROWS"])],
        *(s, *parameters[:2], y, *optional, B * T, D, eps),
        KEEPS=keep,
        **tile,
    )
    return y, normalized, rstd


def fourier_mixing_layer_norm_backward(
    dy: Tensor, weight: Tensor, normalized: Tensor, rstd: Tensor, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, D = dy.shape
    precise, tile = _precision(dy.dtype), _tile(D)
    programs = min(triton.cdiv(B * T, tile["ROWS"]), 2 * multiprocessors(dy.device))
    ds = dy.new_empty(dy.shape, dtype=torch.float32)
    sums = dy.new_empty((programs, 2, D), dtype=torch.float32)
    launch(
        dy.device,
        kernels._normalize_backward,
        [programs],
        *(dy, weight.contiguous(), normalized.contiguous(), rstd.contiguous(), ds, sums, B * T, T, D, *dy.stride()),
        **tile,
    )
    dweight, dbias = weight.new_empty(D), weight.new_empty(D)
    _add_up(sums, dweight, dbias)
    dx = dy.new_empty(dy.shape)
    _rows(_spectrum(ds, norm, precise), _Finish(ds, dx, adds=True), precise)
    return dx, dweight, dbias


def _add_up(sums: Tensor, dweight: Tensor, dbias: Tensor) -> None:
    programs, _, D = sums.shape
    options: dict[str, Any] = {"COLUMNS": 64, "PARTS": 16, "num_warps": 4}
    launch(sums.device, add_up, [triton.cdiv(2 * D, 64)], sums, dweight, dbias, D, programs, **options)
