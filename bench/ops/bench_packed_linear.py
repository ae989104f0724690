"""packed_linear against F.linear and the activation behind it: forward, and forward with all gradients."""

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
from encoders_fast.ops import packed_linear, packed_linears

# (M, K, N): the products of RoBERTa-base for a sentence, a text and a batch, XLM-RoBERTa-XL's, and MobileBERT's.
SIZES = [
    (8, 768, 768),
    (128, 768, 768),
    (512, 768, 3072),
    (512, 3072, 768),
    (4096, 768, 768),
    (4096, 768, 2304),
    (4096, 768, 3072),
    (4096, 3072, 768),
    (512, 2560, 10240),
    (128, 512, 128),
]
TRAINING_SIZES = [(128, 768, 768), (2048, 768, 3072), (4096, 768, 768)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Rounding alone; plain PyTorch is sometimes better than half of this.
FLOOR = {"float32": 1e-6, "bfloat16": 4e-3}

Function = Callable[..., Tensor]


def plain_linear(x: Tensor, *p: Tensor) -> Tensor:
    return F.linear(x, p[0], p[1])


def ours_linear(x: Tensor, *p: Tensor) -> Tensor:
    return packed_linear(x, p[0], p[1])


def plain_gelu(x: Tensor, *p: Tensor) -> Tensor:
    return F.gelu(F.linear(x, p[0], p[1]))


def ours_gelu(x: Tensor, *p: Tensor) -> Tensor:
    return packed_linear(x, p[0], p[1], "gelu")


def plain_residual(x: Tensor, *p: Tensor) -> Tensor:
    return F.linear(x, p[0], p[1]) + p[2]


def ours_residual(x: Tensor, *p: Tensor) -> Tensor:
    return packed_linear(x, p[0], p[1], "none", p[2])


def plain_three(x: Tensor, *p: Tensor) -> Tensor:
    return torch.cat([F.linear(x, p[2 * i], p[2 * i + 1]) for i in range(3)], -1)


def ours_three(x: Tensor, *p: Tensor) -> Tensor:
    """Query, key and value, side by side: what contenders are compared in."""
    return torch.cat(packed_linears(x, p[0::2], p[1::2]), -1)


JOBS: dict[str, tuple[Function, Function]] = {
    "bias": (plain_linear, ours_linear),
    "bias and GELU": (plain_gelu, ours_gelu),
    "bias and residual": (plain_residual, ours_residual),
    "three weights at once": (plain_three, ours_three),
}


def tensors(job: str, size: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    M, K, N = size
    pairs = [t for _ in range(3) for t in (torch.randn(N, K) * K**-0.5, torch.randn(N))]
    given = pairs if job == "three weights at once" else [*pairs[:2], torch.randn(M, N)]
    return tuple(t.to(dtype) for t in (torch.randn(M, K), *given))


def side_by_side(job: str, size: tuple[int, int, int], dtype: str) -> list[Contender]:
    plain, ours = JOBS[job]
    inputs = tensors(job, size, DTYPES[dtype])
    exact = plain(*(tensor.double() for tensor in inputs))
    M, K, N = size
    weights = 3 if job == "three weights at once" else 1
    baseline = f"torch {dtype}"
    contender = partial(
        Contender,
        expected=(expect(plain(*inputs), exact, FLOOR[dtype]),),
        flops=2.0 * M * K * N * weights,
        memory=True,
    )

    def on_backend(name: str) -> Tensor:
        with use_backend(name):
            return ours(*inputs)

    refusals = _dispatch.explain("packed_linear", *inputs[:3]).refusals
    return [contender(baseline, partial(plain, *inputs))] + [
        contender(f"{row.name} {dtype}", partial(on_backend, row.name), baseline, absent=refusals.get(row.name))
        for row in _dispatch.tables()["packed_linear"]
    ]


def run(compare: Callable[[Case], None], job: str, size: tuple[int, int, int]) -> None:
    contenders = tuple(contender for dtype in DTYPES for contender in side_by_side(job, size, dtype))
    compare(Case(f"packed_linear, {job}", str(size), contenders, "brgemm float32"))


def with_gradients(job: str, size: tuple[int, int, int], dtype: str) -> list[Contender]:
    plain, ours = JOBS[job]
    inputs = tuple(tensor.requires_grad_() for tensor in tensors(job, size, DTYPES[dtype])[:3])
    wide = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    dy = torch.randn(size[0], size[2]).to(DTYPES[dtype])

    def both(function: Function, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y = function(*given)
        return torch.autograd.grad(y, given, dy.to(y.dtype))

    def on_backend(name: str) -> tuple[Tensor, ...]:
        with use_backend(name):
            return both(ours, inputs)

    M, K, N = size
    baseline = f"torch {dtype}"
    pairs = zip(both(plain, inputs), both(plain, wide), strict=True)
    contender = partial(
        Contender,
        expected=tuple(expect(same, exact, FLOOR[dtype]) for same, exact in pairs),
        outputs=lambda results: results,
        flops=6.0 * M * K * N,
        memory=True,
    )
    refusals = _dispatch.explain("packed_linear", *inputs).refusals
    return [
        contender(baseline, partial(both, plain, inputs)),
        contender(f"brgemm {dtype}", partial(on_backend, "brgemm"), baseline, absent=refusals.get("brgemm")),
    ]


@pytest.mark.parametrize("size", TRAINING_SIZES, ids=str)
def bench_gradients(compare: Callable[[Case], None], size: tuple[int, int, int]) -> None:
    contenders = tuple(contender for dtype in DTYPES for contender in with_gradients("bias and GELU", size, dtype))
    compare(Case("packed_linear, bias and GELU, with gradients", str(size), contenders, "brgemm float32", grad=True))


@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_bias(compare: Callable[[Case], None], size: tuple[int, int, int]) -> None:
    run(compare, "bias", size)


@pytest.mark.parametrize("size", SIZES[1:5], ids=str)
def bench_gelu(compare: Callable[[Case], None], size: tuple[int, int, int]) -> None:
    run(compare, "bias and GELU", size)


@pytest.mark.parametrize("size", [SIZES[3], SIZES[9]], ids=str)
def bench_residual(compare: Callable[[Case], None], size: tuple[int, int, int]) -> None:
    run(compare, "bias and residual", size)


@pytest.mark.parametrize("size", [SIZES[1], SIZES[4]], ids=str)
def bench_several(compare: Callable[[Case], None], size: tuple[int, int, int]) -> None:
    run(compare, "three weights at once", size)
