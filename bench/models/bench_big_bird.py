"""Two of BigBird-base's twelve layers, ours against transformers on the same weights.

transformers' block_sparse takes seconds a layer at these lengths; the layers are alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import encoders_fast.models as ours
from bench.contender import Case, Contender, Expected, Target
from bench.models.bench_fnet import (
    GRADIENT_FLOOR,
    OUTPUT_FLOOR,
    TrainingStep,
    accelerated,
    encode,
    gradient,
    once_more,
)
from bench.verify import expect
from encoders_fast._compare.checkpoint import share_parameters

STOCK, FULL = "transformers block_sparse", "transformers original_full"
ACCELERATED, OURS = "transformers accelerate", "encoders_fast block_sparse"
TITLE = "BigBird-base, 2 of 12 layers"
FLOORS = {torch.float32: OUTPUT_FLOOR, torch.bfloat16: 0.0}
GRADIENT_FLOORS = {torch.float32: GRADIENT_FLOOR, torch.bfloat16: 0.0}
# The contenders draw differently.
OPTIONS: dict[str, Any] = {"num_hidden_layers": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# What ours has to reach by the tokens, on two AVX-512 cores with BF16.
FORWARD_TARGETS = {
    (4096, "float32"): (Target(f"{STOCK} float32", 2.7),),
    (4096, "bfloat16"): (Target(f"{STOCK} bfloat16", 6.0), Target(f"{FULL} bfloat16", 3.5)),
}
TRAINING_TARGETS = {(2048, dtype): Target(f"{STOCK} {dtype}", 2.0) for dtype in ("float32", "bfloat16")}


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """(ours, transformers') of one class, with the same seeded weights in the same memory."""
    config = transformers.BigBirdConfig(**OPTIONS | options)
    torch.manual_seed(0)
    stock, fast = getattr(transformers, name)(config), getattr(ours, name)(config)
    share_parameters(stock, fast)
    return fast.eval(), stock.eval()


def token_ids(config: Any, batch: int, length: int) -> Tensor:
    """Without padding, whose id is 0."""
    return torch.randint(100, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


def with_full_attention(stock: Any) -> Any:
    full = once_more(stock)
    full.set_attention_type("original_full")
    return full


def matrix_flops(config: Any, batch: int, length: int) -> float:
    """Two per weight and token, four D * D and two D * F in each layer; and 4 * block * block * D for a pair of blocks.

    Of n blocks the first and the last see n, the second and the last but one 4, the others 5; transformers' copies of
    the first block are no work that has to be done. Full attention is counted as if it were this one.
    """
    D, F, block = config.hidden_size, config.intermediate_size, config.block_size
    blocks = length // block
    pairs = 2 * blocks + 2 * 4 + (blocks - 4) * 5
    weights = 2.0 * length * (4 * D * D + 2 * D * F)
    return batch * config.num_hidden_layers * (weights + 4.0 * pairs * block * block * D)


def head_flops(config: Any, batch: int, length: int) -> float:
    return 2.0 * batch * length * config.hidden_size * (config.hidden_size + config.vocab_size)


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    return model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)


@pytest.mark.parametrize(("batch", "length"), [(1, 1024), pytest.param(1, 4096, marks=pytest.mark.long)])
def bench_forward(compare: Callable[[Case], None], batch: int, length: int) -> None:
    """Errors are taken to float64, and twice transformers' own in the same dtype are allowed."""
    fast, stock = pair("BigBirdModel")
    full = with_full_attention(stock)
    ids = token_ids(fast.config, batch, length)
    flops = matrix_flops(fast.config, batch, length)
    with torch.inference_mode():
        exact, exact_full = (encode(copy.deepcopy(model).double(), ids) for model in (stock, full))

    def contender(name: str, model: Any, wanted: Expected, baseline: str | None = None, **more: Any) -> Contender:
        call = partial(encode, model, ids)
        return Contender(name, call, baseline, expected=(wanted,), flops=flops, memory=True, **more)

    def contenders(dtype: torch.dtype) -> list[Contender]:
        label = str(dtype).removeprefix("torch.")
        ours_, theirs, theirs_full = (in_dtype(model, dtype) for model in (fast, stock, full))
        with torch.inference_mode():
            expected = expect(encode(theirs, ids), exact, FLOORS[dtype])
            expected_full = expect(encode(theirs_full, ids), exact_full, FLOORS[dtype])
        baseline = f"{STOCK} {label}"
        target = FORWARD_TARGETS.get((length, label))
        return [
            contender(baseline, theirs, expected),
            # Another result: what the sparse ones are an approximation of.
            contender(f"{FULL} {label}", theirs_full, expected_full, baseline),
            contender(f"{ACCELERATED} {label}", accelerated(theirs), expected, baseline),
            contender(f"{OURS} {label}", ours_, expected, baseline, target=target),
        ]

    found = [one for dtype in FLOORS for one in contenders(dtype)]
    compare(Case(f"{TITLE} forward", f"{batch} x {length}", tuple(found), f"{OURS} float32"))


@pytest.mark.parametrize(("batch", "length"), [(1, 1024), pytest.param(1, 2048, marks=pytest.mark.long)])
def bench_training_step(compare: Callable[[Case], None], batch: int, length: int) -> None:
    """Forward, backward and AdamW of the masked-language-model class, with training's random blocks. The learning rate
    is 0: each step then meets the same weights, and the models may share them."""
    fast, stock = (model.train() for model in pair("BigBirdForMaskedLM", vocab_size=8000))
    ids = token_ids(fast.config, batch, length)
    exact = gradient(copy.deepcopy(stock).double(), ids)
    # Training has three blocks more for all rows but the first and the last.
    flops = 3 * (matrix_flops(fast.config, batch, length) + head_flops(fast.config, batch, length))

    def contenders(dtype: torch.dtype) -> list[Contender]:
        label = str(dtype).removeprefix("torch.")
        ours_, theirs = (in_dtype(model, dtype) for model in (fast, stock))
        expected = expect(gradient(theirs, ids), exact, GRADIENT_FLOORS[dtype])
        baseline = f"{STOCK} {label}"

        def contender(name: str, model: Any, baseline: str | None = None, **more: Any) -> Contender:
            step = TrainingStep(model, ids)
            return Contender(name, step, baseline, outputs=step.gradients, expected=(expected,), flops=flops, **more)

        return [
            contender(baseline, theirs),
            contender(f"{ACCELERATED} {label}", accelerated(theirs), baseline),
            contender(f"{OURS} {label}", ours_, baseline, target=TRAINING_TARGETS.get((length, label))),
        ]

    found = [one for dtype in GRADIENT_FLOORS for one in contenders(dtype)]
    compare(Case(f"{TITLE} training step", f"{batch} x {length}", tuple(found), f"{OURS} float32", grad=True))
