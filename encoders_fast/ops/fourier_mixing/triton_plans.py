"""How a transform of N values is split into products with small matrices, and those matrices.

N = N1 N2, index n = n1 N2 + n2 before and k = k1 + N1 k2 behind:

    F[k] = sum over n2 of wave_N2(n2 k2) wave_N(n2 k1) sum over n1 of wave_N1(n1 k1) f[n],
    wave_N(j) = exp(-2 pi i j / N)

Real values need k1 up to N1 / 2 alone. A transform is its own transpose: read backwards, this goes from half a spectrum
to real values.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

# Matrices of longer factors (primes, mostly) would take more than 1 MiB a length and stay: kernels look their entries
# up in one period of the wave.
LONGEST_STORED = 512


class Plan(NamedTuple):
    N1: int
    N2: int
    first: Tensor
    """Cosine and sine [2, N1 / 2 + 1, N1] of the real stage; one period of both, [2, N1], where N1 is too long."""
    stored: bool
    """Whether `first` is a matrix."""
    twiddle: Tensor
    """[2, N2, N1 / 2 + 1]."""
    second: Tensor
    """[2, N2, N2], of the complex stage."""


@functools.cache
def plan(N1: int, N2: int, device: torch.device, tf32: bool) -> Plan:
    """Made once a length and device and kept: in float64, rounded once, to what TF32 keeps if that is what multiplies.

    At most 1 MiB: 4 N1**2 + 8 N2**2 + 4 N1 N2 bytes, the first term no longer than LONGEST_STORED allows.
    """
    half, first, second = (torch.arange(length, device="cpu") for length in (N1 // 2 + 1, N1, N2))
    stored = N1 <= LONGEST_STORED
    real = _waves(half[:, None] * first if stored else first, N1)
    parts = (real, _waves(second[:, None] * half, N1 * N2), _waves(second[:, None] * second, N2))
    real, twiddle, complex_ = (part.float() for part in parts)
    if tf32:
        real, complex_ = _to_tf32(real), _to_tf32(complex_)
    # Copies from the host are waited for: every stream finds a whole plan.
    real, twiddle, complex_ = (part.to(device) for part in (real, twiddle, complex_))
    return Plan(N1, N2, real, stored, twiddle, complex_)


def _waves(steps: Tensor, period: int) -> Tensor:
    """Taken modulo the period while integer, angles are as exact for long transforms as for short ones."""
    angles = (steps % period).double() * (2 * math.pi / period)
    return torch.stack([angles.cos(), angles.sin()])


def _to_tf32(values: Tensor) -> Tensor:
    bits = values.view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def _sixteens(size: int) -> int:
    return -(-size // 16) * 16


@functools.cache
def split_tokens(T: int, tf32: bool) -> tuple[int, int]:
    """(N1, N2) with the fewest products, padded to 16 as tensor cores have them.

    A second stage costs a pass over half a spectrum: some 16 bytes for each of T real values, by an H200's data sheet
    the time of 300 multiplications with TF32 and of 100 with three of them. Not measured.
    """

    def cost(N2: int) -> float:
        N1 = T // N2
        real = 2 * N2 * _sixteens(N1 // 2 + 1) * _sixteens(N1)
        if N2 == 1:
            return real
        return real + 4 * (N1 // 2 + 1) * _sixteens(N2) ** 2 + (300 if tf32 else 100) * T

    N2 = min((N2 for N2 in range(1, T + 1) if T % N2 == 0), key=cost)
    return T // N2, N2


@functools.cache
def split_width(D: int) -> tuple[int, int]:
    """(N1, N2) for both stages in the registers of one program, N2 = 1 where they do not fit and for narrow rows.

    N2 is a power of two, which leaves a program's columns contiguous. A row takes at most 4096 places.
    """

    def places(N2: int) -> int:
        return power(D // N2) * N2

    def cost(N2: int) -> int:
        half = power(D // N2 // 2 + 1)
        return 4 * N2 * N2 * half + 2 * N2 * half * power(D // N2)

    fitting = [N2 for N2 in (16, 32, 64) if D % N2 == 0 and D // N2 <= 128 and places(N2) <= min(4096, 2 * D)]
    if D < 128 or not fitting:
        return D, 1
    N2 = min(reversed(fitting), key=cost)  # of equal ones the longest runs of neighbouring columns
    return D // N2, N2


def power(size: int) -> int:
    """What `size` is padded to in a product: a power of two, at least 16."""
    return max(1 << (size - 1).bit_length(), 16)
