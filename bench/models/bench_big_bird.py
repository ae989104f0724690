"""Two of BigBird-base's twelve layers, ours against transformers on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from bench import clock
from bench.contender import Case, Contender, Expected, Target
from bench.models.families import (
    FAMILIES,
    GRADIENT_FLOOR,
    OUTPUT_FLOOR,
    TrainingStep,
    accelerated,
    encode,
    gradient,
    head_flops,
    in_dtype,
    label,
    once_more,
    token_ids,
)
from bench.verify import expect

STOCK, FULL = "transformers block_sparse", "transformers original_full"
ACCELERATED, OURS = "transformers accelerate", "encoders_fast block_sparse"
TITLE = "BigBird-base, 2 of 12 layers"
FAMILY = FAMILIES[TITLE]
FLOORS = {torch.float32: OUTPUT_FLOOR, torch.bfloat16: 0.0}
GRADIENT_FLOORS = {torch.float32: GRADIENT_FLOOR, torch.bfloat16: 0.0}
# What ours has to reach by the tokens, on two AVX-512 cores with BF16.
FORWARD_TARGETS = {
    (4096, "float32"): (Target(f"{STOCK} float32", 2.7),),
    (4096, "bfloat16"): (Target(f"{STOCK} bfloat16", 6.0), Target(f"{FULL} bfloat16", 3.5)),
}
TRAINING_TARGETS = {(2048, dtype): Target(f"{STOCK} {dtype}", 2.0) for dtype in ("float32", "bfloat16")}


def with_full_attention(stock: Any) -> Any:
    full = once_more(stock)
    full.set_attention_type("original_full")
    return full


@pytest.mark.parametrize(("batch", "length"), [(1, 1024), pytest.param(1, 4096, marks=pytest.mark.long), (8, 4096)])
def bench_forward(compare: Callable[[Case], None], batch: int, length: int) -> None:
    """Errors are taken to float64, and twice transformers' own in the same dtype are allowed."""
    clock.only_on_gpus(batch == 8)
    fast, stock = FAMILY.pair("Model")
    full = with_full_attention(stock)
    ids = token_ids(fast.config, batch, length)
    flops = FAMILY.matrix_flops(fast.config, batch, length)
    with torch.inference_mode():
        exact, exact_full = (encode(copy.deepcopy(model).double(), ids) for model in (stock, full))

    def contender(name: str, model: Any, wanted: Expected, baseline: str | None = None, **more: Any) -> Contender:
        call = partial(encode, model, ids)
        return Contender(name, call, baseline, expected=(wanted,), flops=flops, memory=True, **more)

    def contenders(dtype: torch.dtype) -> list[Contender]:
        of = label(dtype)
        ours_, theirs, theirs_full = (in_dtype(model, dtype) for model in (fast, stock, full))
        with torch.inference_mode():
            expected = expect(encode(theirs, ids), exact, FLOORS[dtype])
            expected_full = expect(encode(theirs_full, ids), exact_full, FLOORS[dtype])
        baseline = f"{STOCK} {of}"
        target = FORWARD_TARGETS.get((length, of)) if batch == 1 else None
        return [
            contender(baseline, theirs, expected),
            # Another result: what the sparse ones are an approximation of.
            contender(f"{FULL} {of}", theirs_full, expected_full, baseline),
            contender(f"{ACCELERATED} {of}", accelerated(theirs), expected, baseline),
            contender(f"{OURS} {of}", ours_, expected, baseline, target=target),
        ]

    found = [one for dtype in FLOORS for one in contenders(dtype)]
    compare(Case(f"{TITLE} forward", f"{batch} x {length}", tuple(found), f"{OURS} float32"))


@pytest.mark.parametrize(("batch", "length"), [(1, 1024), pytest.param(1, 2048, marks=pytest.mark.long)])
def bench_training_step(compare: Callable[[Case], None], batch: int, length: int) -> None:
    """With training's random blocks."""
    fast, stock = (model.train() for model in FAMILY.pair("ForMaskedLM", vocab_size=8000))
    ids = token_ids(fast.config, batch, length)
    exact = gradient(copy.deepcopy(stock).double(), ids)
    # Training has three blocks more for all rows but the first and the last.
    flops = 3 * (FAMILY.matrix_flops(fast.config, batch, length) + head_flops(fast.config, batch, length))

    def contenders(dtype: torch.dtype) -> list[Contender]:
        of = label(dtype)
        ours_, theirs = (in_dtype(model, dtype) for model in (fast, stock))
        expected = expect(gradient(theirs, ids), exact, GRADIENT_FLOORS[dtype])
        baseline = f"{STOCK} {of}"

        def contender(name: str, model: Any, baseline: str | None = None, **more: Any) -> Contender:
            step = TrainingStep(model, ids)
            return Contender(name, step, baseline, outputs=step.gradients, expected=(expected,), flops=flops, **more)

        return [
            contender(baseline, theirs),
            contender(f"{ACCELERATED} {of}", accelerated(theirs), baseline),
            contender(f"{OURS} {of}", ours_, baseline, target=TRAINING_TARGETS.get((length, of))),
        ]

    found = [one for dtype in GRADIENT_FLOORS for one in contenders(dtype)]
    compare(Case(f"{TITLE} training step", f"{batch} x {length}", tuple(found), f"{OURS} float32", grad=True))
