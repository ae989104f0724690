"""residual_layer_norm against the expression that it replaces, F.layer_norm(residual + x)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import clock
from bench.contender import Case, Contender
from bench.peers import compiled_on_gpus
from bench.verify import expect
from encoders_fast import _dispatch, use_backend
from encoders_fast.ops import residual_layer_norm

# RoBERTa-PreLayerNorm in a batch, and XLM-RoBERTa-XL one text at a time.
SHAPES = [(8, 512, 768), (32, 512, 768), (1, 512, 2560)]
ON_GPUS = [(1, 4096, 768), (1, 4096, 2560), (1, 4096, 4096)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EPS = 1e-5
# Rounding alone; plain PyTorch is sometimes better than half of this.
FLOOR = {"float32": 5e-7, "bfloat16": 2e-3}


def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    s = residual + x
    return F.layer_norm(s, s.shape[-1:], weight, bias, EPS), s


def ours(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return residual_layer_norm(x, residual, weight, bias, EPS)


def forward(function: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor) -> tuple[Tensor, ...]:
    return function(*tensors)


def forward_and_backward(function: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """The gradients where y and s are both used, as in a pre-LN layer. Those of the outputs are x and the residual: any
    fixed values will do."""
    return torch.autograd.grad(function(*tensors), tensors, [t.detach() for t in tensors[:2]])


# Per element, forward: the addition, mean and variance (1 + 3), centre, scale, weight and bias (4).
FLOPS = {forward: 8, forward_and_backward: 8 + 14}
# Tensors of the size of x that have to move. Forward: read x and residual, write y and s. Backward: read dy, ds and s,
# write one gradient, which is x's and the residual's. Statistics are two numbers a row, and parameters stay in cache.
MOVED = {forward: 4, forward_and_backward: 4 + 4}


def side_by_side(job: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...], dtype: str) -> list[Contender]:
    """Plain PyTorch and every backend in the op's table, also those added with register_backend, in one dtype."""
    inputs = tuple(tensor.to(DTYPES[dtype]).requires_grad_(job is forward_and_backward) for tensor in tensors)
    exact = job(plain, *(tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs))
    pairs = zip(job(plain, *inputs), exact, strict=True)
    expected = tuple(expect(rounded, right, FLOOR[dtype]) for rounded, right in pairs)
    elements = tensors[0].numel()
    baseline = f"torch {dtype}"
    contender = partial(
        Contender,
        outputs=tuple,
        expected=expected,
        flops=FLOPS[job] * elements,
        bytes=MOVED[job] * elements * DTYPES[dtype].itemsize,
        memory=True,
    )

    def on_backend(name: str) -> tuple[Tensor, ...]:
        with use_backend(name):
            return job(ours, *inputs)

    refusals = _dispatch.explain("residual_layer_norm", *inputs).refusals
    compiled = compiled_on_gpus(plain)
    return [
        contender(baseline, partial(job, plain, *inputs)),
        contender(f"torch.compile {dtype}", partial(job, compiled.call, *inputs), baseline, absent=compiled.absent),
    ] + [
        contender(f"{row.name} {dtype}", partial(on_backend, row.name), baseline, absent=refusals.get(row.name))
        for row in _dispatch.tables()["residual_layer_norm"]
    ]


def contenders(job: Callable[..., tuple[Tensor, ...]], shape: tuple[int, ...]) -> tuple[Contender, ...]:
    tensors = (torch.randn(shape), torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape[-1]))
    return tuple(contender for dtype in DTYPES for contender in side_by_side(job, tensors, dtype))


def subject() -> str:
    """The best backend in float32."""
    return f"{_dispatch.tables()['residual_layer_norm'][0].name} float32"


@pytest.mark.parametrize("shape", SHAPES + ON_GPUS, ids=str)
def bench_forward(compare: Callable[[Case], None], shape: tuple[int, int, int]) -> None:
    clock.only_on_gpus(shape in ON_GPUS)
    compare(Case("residual_layer_norm forward", str(shape), contenders(forward, shape), subject()))


# Without the largest: in float64, which the exact gradients come from, it takes about a gigabyte.
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], *ON_GPUS], ids=str)
def bench_training(compare: Callable[[Case], None], shape: tuple[int, int, int]) -> None:
    clock.only_on_gpus(shape in ON_GPUS)
    group = "residual_layer_norm forward and backward"
    compare(Case(group, str(shape), contenders(forward_and_backward, shape), subject(), grad=True))
