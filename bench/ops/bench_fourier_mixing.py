"""fourier_mixing and its LayerNorm form against the torch.fft expressions that they replace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contender import Case, Contender, Target
from bench.peers import compiled_on_gpus
from bench.verify import expect
from encoders_fast import _dispatch, use_backend
from encoders_fast.ops import fourier_mixing, fourier_mixing_layer_norm

# Times as fast as plain PyTorch in float32 on two AVX-512 cores: the LayerNorm form, forward, float32.
TARGETS = {(8, 512, 768): 8.0, (1, 4096, 768): 8.0, (1, 500, 768): 5.0, (4, 509, 768): 1.0, (2, 1021, 509): 1.0}
SHAPES = list(TARGETS)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EPS = 1e-12
# Rounding alone; plain PyTorch is sometimes better than half of this.
FLOOR = {"float32": 5e-7, "bfloat16": 0.0, "float16": 0.0}


def plain_mixing(x: Tensor) -> Tensor:
    return torch.fft.fftn(x, dim=(1, 2)).real


def plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x + plain_mixing(x), x.shape[2:], weight, bias, EPS)


def ours_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return fourier_mixing_layer_norm(x, weight, bias, EPS)


def in_float32(function: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
    """What one writes in half types, which torch.fft does not have on a CPU: cast, compute, cast back."""
    return function(x.float(), *(parameter.float() for parameter in parameters)).to(x.dtype)


def mixing_flops(shape: tuple[int, ...]) -> float:
    """A real 2-D FFT of which half the rows are distinct: 1.25 N log2 N per sample, N = T * D, a quarter of the complex
    transform's 5 N log2 N; and one addition per element to fold x onto its symmetric half."""
    batch, elements = shape[0], shape[1] * shape[2]
    return batch * elements * (1.25 * math.log2(elements) + 1)


def layer_norm_flops(shape: tuple[int, ...]) -> float:
    """Per element: the residual's addition, mean and variance (1 + 3), centre, scale, weight and bias (4)."""
    return mixing_flops(shape) + 9 * math.prod(shape)


def forward(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    return (function(*tensors),)


def forward_and_backward(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """The gradients. That of the output is x itself: any fixed values will do."""
    return torch.autograd.grad(function(*tensors), tensors, tensors[0].detach())


def side_by_side(
    op: str,
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    job: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Tensor, ...],
    dtype: str,
    **common: Any,
) -> list[Contender]:
    """Plain PyTorch and every backend in the op's table, also those added with register_backend, in one dtype."""
    inputs = tuple(tensor.to(DTYPES[dtype]).requires_grad_(job is forward_and_backward) for tensor in tensors)
    expression = plain if dtype == "float32" else partial(in_float32, plain)
    exact = job(plain, *(tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs))
    pairs = zip(job(expression, *inputs), exact, strict=True)
    common |= {"outputs": tuple, "expected": tuple(expect(rounded, right, FLOOR[dtype]) for rounded, right in pairs)}
    baseline = f"torch {dtype}"

    def on_backend(name: str) -> tuple[Tensor, ...]:
        with use_backend(name):
            return job(ours, *inputs)

    found = [Contender(baseline, partial(job, expression, *inputs), **common)]
    compiled = compiled_on_gpus(expression)
    call = partial(job, compiled.call, *inputs)
    found.append(Contender(f"torch.compile {dtype}", call, baseline, absent=compiled.absent, **common))
    refusals = _dispatch.explain(op, *inputs).refusals
    for row in _dispatch.tables()[op]:
        # The reference is the same torch.fft expression; one dtype shows what dispatch adds to it.
        if row.name != "reference" or dtype == "float32":
            call = partial(on_backend, row.name)
            found.append(Contender(f"{row.name} {dtype}", call, baseline, absent=refusals.get(row.name), **common))
    return found


def with_targets(contenders: list[Contender], targets: dict[str, Target]) -> tuple[Contender, ...]:
    return tuple(replace(contender, target=targets.get(contender.name)) for contender in contenders)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_layer_norm_forward(compare: Callable[[Case], None], shape: tuple[int, int, int]) -> None:
    tensors = (torch.randn(shape), torch.randn(shape[2]), torch.randn(shape[2]))
    op = "fourier_mixing_layer_norm"
    contenders = [
        contender
        for dtype in DTYPES
        for contender in side_by_side(
            op,
            ours_layer_norm,
            plain_layer_norm,
            forward,
            tensors,
            dtype,
            flops=layer_norm_flops(shape),
            bytes=2 * math.prod(shape) * DTYPES[dtype].itemsize,  # read x, write y; the rest stays in the caches
            memory=True,
        )
    ]
    targets = {
        "cpu float32": Target("torch float32", TARGETS[shape]),
        "cpu bfloat16": Target("cpu float32", 1.0),
    }
    compare(Case(f"{op} forward", str(shape), with_targets(contenders, targets), "cpu float32"))


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def bench_layer_norm_training(compare: Callable[[Case], None], shape: tuple[int, int, int]) -> None:
    tensors = (torch.randn(shape), torch.randn(shape[2]), torch.randn(shape[2]))
    op = "fourier_mixing_layer_norm"
    contenders = [
        contender
        for dtype in ("float32", "bfloat16")
        for contender in side_by_side(
            op,
            ours_layer_norm,
            plain_layer_norm,
            forward_and_backward,
            tensors,
            dtype,
            flops=2 * layer_norm_flops(shape),  # the map is its own adjoint, and LayerNorm's gradient costs as much
            # forward: read x, write y; backward: read dy and one saved activation, write dx
            bytes=5 * math.prod(shape) * DTYPES[dtype].itemsize,
            memory=True,
        )
    ]
    compare(Case(f"{op} forward and backward", str(shape), tuple(contenders), "cpu float32", grad=True))


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SHAPES[4]], ids=str)
def bench_mixing_forward(compare: Callable[[Case], None], shape: tuple[int, int, int]) -> None:
    op = "fourier_mixing"
    contenders = [
        contender
        for dtype in ("float32", "bfloat16")
        for contender in side_by_side(
            op,
            fourier_mixing,
            plain_mixing,
            forward,
            (torch.randn(shape),),
            dtype,
            flops=mixing_flops(shape),
            bytes=2 * math.prod(shape) * DTYPES[dtype].itemsize,  # read x, write y
            memory=True,
        )
    ]
    compare(Case(f"{op} forward", str(shape), tuple(contenders), "cpu float32"))
