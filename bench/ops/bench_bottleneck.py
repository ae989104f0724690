"""bottleneck_input and bottleneck_ffn against the modules that they replace, at MobileBERT's own widths."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contender import Case, Contender
from bench.verify import expect
from encoders_fast import _dispatch, use_backend
from encoders_fast.ops import bottleneck_ffn, bottleneck_input

H, D, INNER, BLOCKS = 512, 128, 512, 4
SHAPES = [(1, 128), (8, 128)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Rounding alone; plain PyTorch is sometimes better than half of this.
FLOOR = {"float32": 1e-6, "bfloat16": 4e-3}

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensors]


def linear(out: int, width: int) -> Tensors:
    return torch.randn(out, width) * width**-0.5, 0.3 * torch.randn(out)


def normed(out: int, width: int) -> Tensors:
    return *linear(out, width), 1 + 0.1 * torch.randn(out), 0.3 * torch.randn(out)


def plain_normed(x: Tensor, p: Tensors, residual: Tensor | float = 0.0) -> Tensor:
    return (F.linear(x, *p[:2]) + residual) * p[2] + p[3]


# Both ops take a row of tensors here: the activations first, then each projection's.


def input_tensors(rows: tuple[int, int]) -> Tensors:
    parts = (linear(D, D), linear(D, D), linear(D, H), normed(D, H), normed(D, H))
    return torch.randn(*rows, H), *(tensor for part in parts for tensor in part)


def ours_input(h: Tensor, *p: Tensor) -> Tensors:
    return bottleneck_input(h, p[0:2], p[2:4], p[4:6], p[6:10], p[10:14])  # type: ignore[arg-type]


def plain_input(h: Tensor, *p: Tensor) -> Tensors:
    u0, s = (F.linear(h, *q[:2]) * q[2] + q[3] for q in (p[6:10], p[10:14]))
    return F.linear(s, *p[0:2]), F.linear(s, *p[2:4]), F.linear(h, *p[4:6]), u0


def ffn_tensors(rows: tuple[int, int]) -> Tensors:
    blocks = [part for _ in range(BLOCKS) for part in (linear(INNER, D), normed(D, INNER))]
    parts = (normed(D, D), *blocks, normed(H, D))
    activations = torch.randn(*rows, D), torch.randn(*rows, D), torch.randn(*rows, H)
    return *activations, *(tensor for part in parts for tensor in part)


def pairs(p: Tensors) -> list[tuple[Tensors, Tensors]]:
    return [(p[4 + 6 * i : 6 + 6 * i], p[6 + 6 * i : 10 + 6 * i]) for i in range(BLOCKS)]


def ours_ffn(attention: Tensor, u0: Tensor, h: Tensor, *p: Tensor) -> Tensors:
    return (bottleneck_ffn(attention, u0, h, p[:4], pairs(p), p[-4:]),)  # type: ignore[arg-type]


def plain_ffn(attention: Tensor, u0: Tensor, h: Tensor, *p: Tensor) -> Tensors:
    u = plain_normed(attention, p[:4], u0)
    for expand, contract in pairs(p):
        u = plain_normed(F.relu(F.linear(u, *expand)), contract, u)
    return (plain_normed(u, p[-4:], h),)


# Two per weight and row, without the norms, which add 1 %.
FLOPS = {
    "bottleneck_input": 2 * (2 * D * D + 3 * H * D),
    "bottleneck_ffn": 2 * (D * D + BLOCKS * 2 * D * INNER + D * H),
}
OPS: dict[str, tuple[Function, Function, Callable[[tuple[int, int]], Tensors]]] = {
    "bottleneck_input": (ours_input, plain_input, input_tensors),
    "bottleneck_ffn": (ours_ffn, plain_ffn, ffn_tensors),
}


def forward(function: Function, *tensors: Tensor) -> Tensors:
    return function(*tensors)


def forward_and_backward(function: Function, *tensors: Tensor) -> Tensors:
    """The gradients, where those of the outputs are the outputs themselves: any fixed values will do."""
    outputs = function(*tensors)
    return torch.autograd.grad(outputs, tensors, [y.detach() for y in outputs])


def contenders(op: str, job: Callable[..., Tensors], rows: tuple[int, int], dtype: str) -> list[Contender]:
    """Plain PyTorch and every backend in the op's table, also those added with register_backend, in one dtype."""
    ours, plain, make = OPS[op]
    grad = job is forward_and_backward
    inputs = tuple(tensor.to(DTYPES[dtype]).requires_grad_(grad) for tensor in make(rows))
    exact = job(plain, *(tensor.detach().double().requires_grad_(grad) for tensor in inputs))
    expected = tuple(
        expect(rounded, right, FLOOR[dtype]) for rounded, right in zip(job(plain, *inputs), exact, strict=True)
    )
    flops = float(rows[0] * rows[1] * FLOPS[op] * (3 if grad else 1))
    common = {"outputs": tuple, "expected": expected, "flops": flops, "memory": True}

    def on_backend(name: str) -> Tensors:
        with use_backend(name):
            return job(ours, *inputs)

    baseline = f"torch {dtype}"
    found = [Contender(baseline, partial(job, plain, *inputs), **common)]  # type: ignore[arg-type]
    for row in _dispatch.tables()[op]:
        call = partial(on_backend, row.name)
        found.append(Contender(f"{row.name} {dtype}", call, baseline, **common))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def bench_forward(compare: Callable[[Case], None], op: str, shape: tuple[int, int]) -> None:
    found = [each for dtype in DTYPES for each in contenders(op, forward, shape, dtype)]
    compare(Case(f"{op} forward", str(shape), tuple(found), "reference float32"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def bench_training(compare: Callable[[Case], None], op: str, shape: tuple[int, int]) -> None:
    found = contenders(op, forward_and_backward, shape, "float32")
    compare(Case(f"{op} forward and backward", str(shape), tuple(found), "reference float32", grad=True))
