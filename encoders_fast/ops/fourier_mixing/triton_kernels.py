"""The Triton kernels of fourier_mixing. Values x [B, T, D] go to half a spectrum over the tokens, and that to rows.

Only the symmetric half of x counts, f[t, h] = (x[t, h] + x[-t, -h]) / 2, and of that the columns h <= D / 2. Over the
tokens they become F[k, h], k <= T / 2: the spectrum [B, T / 2 + 1, 2, pitch], real parts before imaginary ones. F's
other columns are conjugates of these, so that over the width F becomes real: Y[k, h], which is Y[-k, -h] too.

triton_plans.py has the stages, their matrices and the meaning of N1, N2, first, twiddle and second. The halves in f and
the doubles of what a conjugate repeats cancel, but for what is its own conjugate.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_language import product, rounded


@triton.jit
def _to_tf32(x):
    """Tensor cores cut off what TF32 does not keep; rounded first, the error is half of that and has no sign."""
    near = ((x.to(tl.int32, bitcast=True) + 0x1000) & -8192).to(tl.float32, bitcast=True)
    return tl.where(x == x, near, x)  # a GPU's NaN, 0x7FFFFFFF, would wrap round to -0


@triton.jit
def _turned(real, imaginary, cosine, sine):
    """(real + i imaginary) exp(-i angle)"""
    return cosine * real + sine * imaginary, cosine * imaginary - sine * real


@triton.jit
def _tokens_first(
    x, waves, twiddle, z, T, D, N1, N2, pitch, x_batch, x_token, x_column, scale,
    TILE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    STORED: tl.constexpr, TURNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z [B, N1 / 2 + 1, N2, 2, pitch] of x: the sum over n1, turned by the twiddles. With N2 = 1 it is the spectrum."""
    half, tiles = N1 // 2 + 1, tl.cdiv(N1 // 2 + 1, TILE)
    k = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    n2 = tl.program_id(0) // tiles % N2
    x += (tl.program_id(0) // tiles // N2).to(tl.int64) * x_batch
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    opposite = tl.where(column == 0, 0, D - column).to(tl.int64) * x_column
    n1 = tl.arange(0, STEP)
    real = tl.zeros((TILE, COLUMNS), tl.float32)
    sine_sum = tl.zeros((TILE, COLUMNS), tl.float32)
    if not STORED:
        entry = k[:, None] * n1[None, :] % N1
        further = k * STEP % N1
    for start in range(0, N1, STEP):
        t = (start + n1) * N2 + n2
        there = (t < T)[:, None] & (2 * column <= D)[None, :]
        f = tl.load(x + t.to(tl.int64)[:, None] * x_token + column.to(tl.int64)[None, :] * x_column, there, 0.0)
        f = f.to(tl.float32)
        t = tl.where(t == 0, 0, T - t)
        f += tl.load(x + t.to(tl.int64)[:, None] * x_token + opposite[None, :], there, 0.0).to(tl.float32)
        if STORED:
            inside = (k < half)[:, None] & (start + n1 < N1)[None, :]
            cosine = tl.load(waves + k[:, None] * N1 + (start + n1)[None, :], inside, 0.0)
            sine = tl.load(waves + half * N1 + k[:, None] * N1 + (start + n1)[None, :], inside, 0.0)
        else:
            cosine, sine = tl.load(waves + entry), tl.load(waves + N1 + entry)
            entry += further[:, None]
            entry = tl.where(entry >= N1, entry - N1, entry)
        if PRECISION == "tf32":
            f = _to_tf32(f)
        real += product(cosine, f, PRECISION)
        sine_sum += product(sine, f, PRECISION)
    imaginary = -sine_sum
    if TURNS:
        cosine = tl.load(twiddle + n2 * half + k, k < half, 0.0)[:, None]
        sine = tl.load(twiddle + (N2 + n2) * half + k, k < half, 0.0)[:, None]
        real, imaginary = _turned(real, imaginary, cosine, sine)
    z += (tl.program_id(0) // tiles // N2).to(tl.int64) * half * N2 * 2 * pitch
    at = (k.to(tl.int64) * N2 + n2)[:, None] * 2 * pitch + column[None, :]
    there = (k < half)[:, None] & (2 * column <= D)[None, :]
    tl.store(z + at, real * scale, there)
    tl.store(z + at + pitch, imaginary * scale, there)


@triton.jit
def _tokens_second(
    z, second, spectrum, T, D, N1, N2, pitch,
    TILE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The spectrum of z: for one k1, the complex transform over n2."""
    half, tiles = N1 // 2 + 1, tl.cdiv(N2, TILE)
    k2 = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    k1 = tl.program_id(0) // tiles % half
    batch = (tl.program_id(0) // tiles // half).to(tl.int64)
    z += (batch * half + k1) * N2 * 2 * pitch
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    n2 = tl.arange(0, STEP)
    real = tl.zeros((TILE, COLUMNS), tl.float32)
    imaginary = tl.zeros((TILE, COLUMNS), tl.float32)
    for start in range(0, N2, STEP):
        n = start + n2
        inside = (k2 < N2)[:, None] & (n < N2)[None, :]
        cosine = tl.load(second + k2[:, None] * N2 + n[None, :], inside, 0.0)
        sine = tl.load(second + (N2 + k2)[:, None] * N2 + n[None, :], inside, 0.0)
        there = (n < N2)[:, None] & (2 * column <= D)[None, :]
        at = n[:, None] * 2 * pitch + column[None, :]
        z_real, z_imaginary = tl.load(z + at, there, 0.0), tl.load(z + at + pitch, there, 0.0)
        if PRECISION == "tf32":
            z_real, z_imaginary = _to_tf32(z_real), _to_tf32(z_imaginary)
        real += product(cosine, z_real, PRECISION) + product(sine, z_imaginary, PRECISION)
        imaginary += product(cosine, z_imaginary, PRECISION) - product(sine, z_real, PRECISION)
    k = k1 + N1 * k2
    above = 2 * k > T  # the conjugate of T - k, which nobody has but this program, where k1 is 0 or N1 / 2
    there = (k2 < N2) & ((2 * k <= T) | ((T - k) % N1 != k1))
    spectrum += batch * (T // 2 + 1) * 2 * pitch
    at = tl.where(above, T - k, k).to(tl.int64)[:, None] * 2 * pitch + column[None, :]
    there = there[:, None] & (2 * column <= D)[None, :]
    tl.store(spectrum + at, real, there)
    tl.store(spectrum + at + pitch, tl.where(above[:, None], -imaginary, imaginary), there)


@triton.jit
def _tokens_in_two(
    x, waves, twiddle, second, spectrum, T, D, pitch, x_batch, x_token, x_column, scale,
    N1: tl.constexpr, N2: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Both of the above, a few columns of all tokens in registers. HALF and BLOCK are N1 / 2 + 1 and N1, padded."""
    half: tl.constexpr = N1 // 2 + 1
    batch = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, N2 * COLUMNS)
    column = tl.program_id(1) * COLUMNS + place % COLUMNS
    n1 = tl.arange(0, BLOCK)
    t = n1[:, None] * N2 + (place // COLUMNS)[None, :]
    there = (n1 < N1)[:, None] & (2 * column <= D)[None, :]
    x += batch * x_batch
    f = tl.load(x + t.to(tl.int64) * x_token + column.to(tl.int64)[None, :] * x_column, there, 0.0).to(tl.float32)
    t = tl.where(t == 0, 0, T - t)
    opposite = tl.where(column == 0, 0, D - column)
    f += tl.load(x + t.to(tl.int64) * x_token + opposite.to(tl.int64)[None, :] * x_column, there, 0.0).to(tl.float32)
    f *= scale
    if PRECISION == "tf32":
        f = _to_tf32(f)
    k1 = tl.arange(0, HALF)
    inside = (k1 < half)[:, None] & (n1 < N1)[None, :]
    at = k1[:, None] * N1 + n1[None, :]
    real = product(tl.load(waves + at, inside, 0.0), f, PRECISION)
    imaginary = -product(tl.load(waves + half * N1 + at, inside, 0.0), f, PRECISION)
    at = (place // COLUMNS)[None, :] * half + k1[:, None]
    cosine = tl.load(twiddle + at, (k1 < half)[:, None], 0.0)
    sine = tl.load(twiddle + N2 * half + at, (k1 < half)[:, None], 0.0)
    real, imaginary = _turned(real, imaginary, cosine, sine)
    if PRECISION == "tf32":
        real, imaginary = _to_tf32(real), _to_tf32(imaginary)
    real = tl.reshape(tl.permute(tl.reshape(real, (HALF, N2, COLUMNS)), (1, 0, 2)), (N2, HALF * COLUMNS))
    imaginary = tl.reshape(tl.permute(tl.reshape(imaginary, (HALF, N2, COLUMNS)), (1, 0, 2)), (N2, HALF * COLUMNS))
    k2 = tl.arange(0, N2)
    at = k2[:, None] * N2 + k2[None, :]
    cosine, sine = tl.load(second + at), tl.load(second + N2 * N2 + at)
    outer = product(cosine, real, PRECISION) + product(sine, imaginary, PRECISION)
    imaginary = product(cosine, imaginary, PRECISION) - product(sine, real, PRECISION)
    place = tl.arange(0, HALF * COLUMNS)
    column = tl.program_id(1) * COLUMNS + place % COLUMNS
    k1 = (place // COLUMNS)[None, :]
    k = k1 + N1 * k2[:, None]
    above = 2 * k > T
    there = ((2 * k <= T) | ((T - k) % N1 != k1)) & (k1 < half) & (2 * column <= D)[None, :]
    spectrum += batch * (T // 2 + 1) * 2 * pitch
    at = tl.where(above, T - k, k).to(tl.int64) * 2 * pitch + column[None, :]
    tl.store(spectrum + at, outer, there)
    tl.store(spectrum + at + pitch, tl.where(above, -imaginary, imaginary), there)


@triton.jit
def _finish(
    value, row, column, x, weight, bias, y, normalized, rstd, rows, T, D, x_batch, x_token, x_column, eps,
    ADDS: tl.constexpr, NORMALIZES: tl.constexpr, KEEPS: tl.constexpr,
):  # fmt: skip
    """Y [ROWS, COLUMNS] of the rows (batch, k <= T / 2), and what it is of -k: plus x, normalized, stored."""
    k = row % (T // 2 + 1)
    batch = (row // (T // 2 + 1)).to(tl.int64)
    for side in tl.static_range(2):
        if side == 0:
            t = k
            along = column
            present = row < rows
        else:
            t = T - k
            along = tl.where(column == 0, 0, D - column)
            present = (row < rows) & (k > 0) & (2 * k < T)
        there = present[:, None] & (column < D)[None, :]
        result = value
        if ADDS:
            at = (batch * x_batch + t.to(tl.int64) * x_token)[:, None] + along.to(tl.int64)[None, :] * x_column
            result += tl.load(x + at, there, 0.0).to(tl.float32)
        position = batch * T + t
        at = position[:, None] * D + along[None, :]
        if NORMALIZES:
            average = tl.sum(tl.where(there, result, 0.0), 1) / D
            result = tl.where(there, result - average[:, None], 0.0)
            inverse = 1.0 / tl.sqrt(tl.sum(result * result, 1) / D + eps)
            result *= inverse[:, None]
            if KEEPS:
                tl.store(normalized + at, rounded(result, normalized.dtype.element_ty), there)
                tl.store(rstd + position, inverse, present)
            result *= tl.load(weight + along, column < D, 0.0).to(tl.float32)[None, :]
            result += tl.load(bias + along, column < D, 0.0).to(tl.float32)[None, :]
        tl.store(y + at, rounded(result, y.dtype.element_ty), there)


@triton.jit
def _width_dense(
    spectrum, waves, x, weight, bias, y, normalized, rstd,
    rows, T, D, pitch, x_batch, x_token, x_column, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, STORED: tl.constexpr,
    ADDS: tl.constexpr, NORMALIZES: tl.constexpr, KEEPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One stage: N1 is D. Normalizes where a program has whole rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    step = tl.arange(0, STEP)
    half = D // 2 + 1
    value = tl.zeros((ROWS, COLUMNS), tl.float32)
    if not STORED:
        entry = step[:, None] * column[None, :] % D
        further = column * STEP % D
    for start in range(0, half, STEP):
        h = start + step
        there = (row < rows)[:, None] & (h < half)[None, :]
        at = row.to(tl.int64)[:, None] * 2 * pitch + h[None, :]
        single = tl.where((h == 0) | (2 * h == D), 0.5, 1.0)[None, :]
        real, imaginary = tl.load(spectrum + at, there, 0.0), tl.load(spectrum + at + pitch, there, 0.0)
        real, imaginary = real * single, imaginary * single
        if STORED:
            inside = (h < half)[:, None] & (column < D)[None, :]
            cosine = tl.load(waves + h[:, None] * D + column[None, :], inside, 0.0)
            sine = tl.load(waves + (half + h)[:, None] * D + column[None, :], inside, 0.0)
        else:
            cosine, sine = tl.load(waves + entry), tl.load(waves + D + entry)
            entry += further[None, :]
            entry = tl.where(entry >= D, entry - D, entry)
        if PRECISION == "tf32":
            real, imaginary = _to_tf32(real), _to_tf32(imaginary)
        value += product(real, cosine, PRECISION) + product(imaginary, sine, PRECISION)
    _finish(
        value, row, column, x, weight, bias, y, normalized, rstd, rows, T, D, x_batch, x_token, x_column, eps,
        ADDS, NORMALIZES, KEEPS,
    )  # fmt: skip


@triton.jit
def _width_in_two(
    spectrum, waves, twiddle, second, x, weight, bias, y, normalized, rstd,
    rows, T, D, pitch, x_batch, x_token, x_column, eps,
    ROWS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    ADDS: tl.constexpr, NORMALIZES: tl.constexpr, KEEPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Both stages over whole rows in registers, backwards: the complex one over h = h1 + N1 h2, then the real one over
    h1. HALF and BLOCK are N1 / 2 + 1 and N1, padded."""
    half: tl.constexpr = N1 // 2 + 1
    place = tl.arange(0, ROWS * HALF)
    h1 = place % HALF
    row = tl.program_id(0) * ROWS + place // HALF
    h2 = tl.arange(0, N2)
    h = h1[None, :] + N1 * h2[:, None]
    above = 2 * h > D
    at = row.to(tl.int64)[None, :] * 2 * pitch + tl.where(above, D - h, h)
    there = ((row < rows) & (h1 < half))[None, :] & (h2 < N2)[:, None]
    single = tl.where((h1 == 0) | (2 * h1 == N1), 0.5, 1.0)[None, :]
    real, imaginary = tl.load(spectrum + at, there, 0.0), tl.load(spectrum + at + pitch, there, 0.0)
    real, imaginary = real * single, tl.where(above, -imaginary, imaginary) * single
    if PRECISION == "tf32":
        real, imaginary = _to_tf32(real), _to_tf32(imaginary)
    at = h2[:, None] * N2 + h2[None, :]
    cosine, sine = tl.load(second + at), tl.load(second + N2 * N2 + at)
    inner = product(cosine, real, PRECISION) + product(sine, imaginary, PRECISION)
    imaginary = product(cosine, imaginary, PRECISION) - product(sine, real, PRECISION)
    at = h2[:, None] * half + h1[None, :]
    inside = (h1 < half)[None, :] & (h2 < N2)[:, None]
    cosine, sine = tl.load(twiddle + at, inside, 0.0), tl.load(twiddle + N2 * half + at, inside, 0.0)
    real, imaginary = _turned(inner, imaginary, cosine, sine)
    if PRECISION == "tf32":
        real, imaginary = _to_tf32(real), _to_tf32(imaginary)
    real, imaginary = tl.reshape(real, (N2 * ROWS, HALF)), tl.reshape(imaginary, (N2 * ROWS, HALF))
    n1 = tl.arange(0, HALF)
    column = tl.arange(0, BLOCK)
    inside = (n1 < half)[:, None] & (column < N1)[None, :]
    at = n1[:, None] * N1 + column[None, :]
    cosine, sine = tl.load(waves + at, inside, 0.0), tl.load(waves + half * N1 + at, inside, 0.0)
    value = product(real, cosine, PRECISION) + product(imaginary, sine, PRECISION)
    value = tl.reshape(tl.permute(tl.reshape(value, (N2, ROWS, BLOCK)), (1, 2, 0)), (ROWS, BLOCK * N2))
    _finish(
        value, tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK * N2), x, weight, bias, y, normalized,
        rstd, rows, T, D, x_batch, x_token, x_column, eps, ADDS, NORMALIZES, KEEPS,
    )  # fmt: skip


@triton.jit
def _normalize(
    s, weight, bias, y, normalized, rstd, rows, D, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, KEEPS: tl.constexpr,
):  # fmt: skip
    """The LayerNorm of sums [rows, D], where rows are too wide for the kernel that made them."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    there = (row < rows)[:, None] & (column < D)[None, :]
    at = row.to(tl.int64)[:, None] * D + column[None, :]
    value = tl.load(s + at, there, 0.0)
    value = tl.where(there, value - (tl.sum(value, 1) / D)[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(value * value, 1) / D + eps)
    value *= inverse[:, None]
    if KEEPS:
        tl.store(normalized + at, rounded(value, normalized.dtype.element_ty), there)
        tl.store(rstd + row, inverse, row < rows)
    value *= tl.load(weight + column, column < D, 0.0).to(tl.float32)[None, :]
    value += tl.load(bias + column, column < D, 0.0).to(tl.float32)[None, :]
    tl.store(y + at, rounded(value, y.dtype.element_ty), there)


@triton.jit
def _normalize_backward(
    dy, weight, normalized, rstd, ds, sums, rows, T, D, dy_batch, dy_token, dy_column,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ds [rows, D] in float32, and each program's share of the parameters' gradients."""
    column = tl.arange(0, BLOCK)
    factors = tl.load(weight + column, column < D, 0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK,), tl.float32)
    dbias = tl.zeros((BLOCK,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        there = (row < rows)[:, None] & (column < D)[None, :]
        at = (row // T).to(tl.int64) * dy_batch + (row % T).to(tl.int64) * dy_token
        at = at[:, None] + column.to(tl.int64)[None, :] * dy_column
        gradient = tl.load(dy + at, there, 0.0).to(tl.float32)
        at = row.to(tl.int64)[:, None] * D + column[None, :]
        normal = tl.load(normalized + at, there, 0.0).to(tl.float32)
        dweight += tl.sum(gradient * normal, 0)
        dbias += tl.sum(gradient, 0)
        gradient *= factors[None, :]
        along = tl.sum(gradient * normal, 1) / D
        gradient -= (tl.sum(gradient, 1) / D)[:, None] + normal * along[:, None]
        tl.store(ds + at, gradient * tl.load(rstd + row, row < rows, 0.0)[:, None], there)
    at = sums + tl.program_id(0).to(tl.int64) * 2 * D + column
    tl.store(at, dweight, column < D)
    tl.store(at + D, dbias, column < D)
