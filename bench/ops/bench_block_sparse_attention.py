"""block_sparse_attention with BigBird's patterns against dense attention, which is torch's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import clock
from bench.contender import Case, Contender, Expected, Target
from bench.peers import flex_attention
from bench.verify import expect
from encoders_fast import _dispatch, use_backend
from encoders_fast.ops import BlockSparsePattern, block_sparse_attention

# Times as fast as dense attention in the same dtype, on two AVX-512 cores. At 4096 tokens the lists hold 11 % of all
# pairs in evaluation and 15 % in training, at 1024 tokens 39 % and 55 %.
TARGETS: dict[tuple[int, ...], float] = {(1, 12, 1024, 64): 1.5, (1, 12, 4096, 64): 6.0}
SHAPES = list(TARGETS)
LONG = (1, 12, 16384, 64)
ON_GPUS = (8, 12, 4096, 64)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OP = "block_sparse_attention"
# Rounding alone, for the same reason as in the tests: a plain computation may round better than one can expect.
FLOOR = {"float32": 5e-7, "bfloat16": 0.0}

Attention = Callable[..., Tensor]
dense = F.scaled_dot_product_attention


def listed_pairs(pattern: BlockSparsePattern, heads: int) -> int:
    """Pairs of a block of queries and a block of keys, in all heads."""
    return pattern.columns.numel() * (heads // pattern.heads)


def flops(pattern: BlockSparsePattern, shape: tuple[int, ...], products: int) -> float:
    """Each product multiplies block x block x K for every listed pair: 2 products forward (scores, output), and 5
    backward (the scores again, and the gradients of probabilities, values, queries and keys)."""
    B, H, _, K = shape
    return B * listed_pairs(pattern, H) * products * 2.0 * pattern.block**2 * K


def forward(attention: Attention, *tensors: Tensor) -> tuple[Tensor, ...]:
    return (attention(*tensors),)


def forward_and_backward(attention: Attention, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The gradients. That of the output is the query itself: any fixed values will do."""
    return torch.autograd.grad(attention(*tensors), tensors, tensors[0].detach())


def contenders(
    job: Callable[..., tuple[Tensor, ...]], pattern: BlockSparsePattern, shape: tuple[int, ...], dtype: str
) -> list[Contender]:
    """Dense attention, which does another and larger job and is checked against itself, and every backend."""
    grad = job is forward_and_backward
    inputs = tuple(torch.randn(shape).to(DTYPES[dtype]).requires_grad_(grad) for _ in range(3))
    wide = tuple(x.detach().double().requires_grad_(grad) for x in inputs)
    # Forward: read query, key and value, write the output. Backward: read these and the output's gradient, write three.
    moved = (12 if grad else 4) * inputs[0].nbytes
    work = flops(pattern, shape, products=7 if grad else 2)
    everything = BlockSparsePattern.full(shape[2])

    def ours(pattern: BlockSparsePattern, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return block_sparse_attention(query, key, value, pattern)

    def on_backend(name: str) -> tuple[Tensor, ...]:
        with use_backend(name):
            return job(partial(ours, pattern), *inputs)

    def exact(pattern: BlockSparsePattern) -> tuple[Tensor, ...]:
        return job(partial(ours, pattern), *wide)

    # What dense attention loses in this dtype is what the others may lose.
    dense_expected = tuple(map(partial(expect, floor=FLOOR[dtype]), job(dense, *inputs), exact(everything)))
    expected = tuple(Expected(right, of.allowed) for right, of in zip(exact(pattern), dense_expected, strict=True))
    baseline = f"dense {dtype}"
    dense_work = flops(everything, shape, products=7 if grad else 2)
    found = [
        Contender(baseline, partial(job, dense, *inputs), None, None, moved, dense_work, tuple, dense_expected, True)
    ]
    refusals = _dispatch.explain(OP, *inputs, pattern).refusals
    target = Target(baseline, TARGETS[shape]) if shape in TARGETS else None
    flex = flex_attention(pattern)
    call = partial(job, flex.call, *inputs)
    found.append(
        Contender(f"FlexAttention {dtype}", call, baseline, None, moved, work, tuple, expected, True, flex.absent)
    )
    for row in _dispatch.tables()[OP]:
        call, absent = partial(on_backend, row.name), refusals.get(row.name)
        name = f"{row.name} {dtype}"
        wanted = target if row.name == "cpu" else None
        found += [Contender(name, call, baseline, wanted, moved, work, tuple, expected, True, absent)]
    return found


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("shape", [*SHAPES, ON_GPUS], ids=str)
def bench_forward(compare: Callable[[Case], None], shape: tuple[int, ...], training: bool) -> None:
    clock.only_on_gpus(shape == ON_GPUS)
    pattern = BlockSparsePattern.big_bird(shape[2], heads=shape[1], training=training)
    found = [contender for dtype in DTYPES for contender in contenders(forward, pattern, shape, dtype)]
    name = f"{shape} {'training' if training else 'evaluation'}"
    compare(Case(f"{OP} forward", name, tuple(found), "cpu float32"))


@pytest.mark.parametrize("shape", [*SHAPES, ON_GPUS], ids=str)
def bench_training(compare: Callable[[Case], None], shape: tuple[int, ...]) -> None:
    clock.only_on_gpus(shape == ON_GPUS)
    pattern = BlockSparsePattern.big_bird(shape[2], heads=shape[1], training=True)
    found = [contender for dtype in DTYPES for contender in contenders(forward_and_backward, pattern, shape, dtype)]
    compare(Case(f"{OP} forward and backward", str(shape), tuple(found), "cpu float32", grad=True))


# (B, H, Tq, Tk, K): what models' dense attention runs on this op for, and one step of a decoder, for which it does not.
DENSE = [
    (1, 12, 128, 128, 64),
    (8, 12, 128, 128, 64),
    (1, 12, 512, 512, 64),
    (1, 4, 128, 128, 32),
    (32, 12, 1, 512, 64),
]


@pytest.mark.parametrize("job", [forward, forward_and_backward], ids=["forward", "both"])
@pytest.mark.parametrize("shape", DENSE, ids=str)
def bench_every_block(
    compare: Callable[[Case], None], shape: tuple[int, ...], job: Callable[..., tuple[Tensor, ...]]
) -> None:
    """Every block listed, against torch's operator for the same attention."""
    B, H, Tq, Tk, K = shape
    pattern, grad = BlockSparsePattern.full(Tq, Tk), job is forward_and_backward
    found: list[Contender] = []

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return block_sparse_attention(query, key, value, pattern)

    for dtype, floor in FLOOR.items():
        inputs = tuple(torch.randn(B, H, tokens, K).to(DTYPES[dtype]).requires_grad_(grad) for tokens in (Tq, Tk, Tk))
        exact = job(dense, *(x.detach().double().requires_grad_(grad) for x in inputs))
        pairs = zip(job(dense, *inputs), exact, strict=True)
        expected = tuple(expect(rounded, right, floor) for rounded, right in pairs)
        work = (7 if grad else 2) * 2.0 * B * H * Tq * Tk * K
        baseline = f"dense {dtype}"
        absent = _dispatch.explain(OP, *inputs, pattern).refusals.get("cpu")
        found.append(Contender(baseline, partial(job, dense, *inputs), flops=work, outputs=tuple, expected=expected))
        call = partial(job, ours, *inputs)
        found.append(
            Contender(f"cpu {dtype}", call, baseline, flops=work, outputs=tuple, expected=expected, absent=absent)
        )
    title = f"{OP} of every block, {'forward and backward' if grad else 'forward'}"
    compare(Case(title, str(shape), tuple(found), "cpu float32", grad=grad))


def bench_long_forward(compare: Callable[[Case], None]) -> None:
    """Where dense attention takes seconds: work and memory grow with the tokens. Half types are checked against what
    `reference`, which rounds once, gives in them; operands of products are rounded too, as dense attention's are."""
    pattern = BlockSparsePattern.big_bird(LONG[2], heads=LONG[1], training=True)
    tensors = tuple(torch.randn(LONG) for _ in range(3))

    def on_backend(name: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        with use_backend(name):
            return (block_sparse_attention(query, key, value, pattern),)

    found: list[Contender] = []
    for dtype, floor in (("float32", 5e-7), ("bfloat16", 4e-3)):
        inputs = tuple(tensor.to(DTYPES[dtype]) for tensor in tensors)
        exact = on_backend("reference", *(tensor.double() for tensor in inputs))
        expected = tuple(map(partial(expect, floor=floor), on_backend("reference", *inputs), exact))
        baseline = Contender(
            f"reference {dtype}",
            partial(on_backend, "reference", *inputs),
            None,
            None,
            4 * inputs[0].nbytes,
            flops(pattern, LONG, products=2),
            tuple,
            expected,
            True,
        )
        absent = _dispatch.explain(OP, *inputs, pattern).refusals.get("cpu")
        call = partial(on_backend, "cpu", *inputs)
        ours = replace(baseline, name=f"cpu {dtype}", call=call, baseline=baseline.name, absent=absent)
        found += [baseline, ours]
    compare(Case(f"{OP} forward", f"{LONG} training", tuple(found), "cpu float32"))
