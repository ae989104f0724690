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
from bench.contender import Case, Contender, Expected
from bench.models.bench_fnet import GRADIENT_FLOOR, OUTPUT_FLOOR, TrainingStep, accelerated, encode, gradient
from bench.verify import expect
from encoders_fast._compare.checkpoint import share_parameters

STOCK, FULL, OURS = "transformers block_sparse", "transformers original_full", "encoders_fast block_sparse"
TITLE = "BigBird-base, 2 of 12 layers"
# The contenders draw differently.
OPTIONS: dict[str, Any] = {"num_hidden_layers": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """(ours, transformers') of one class, with the same seeded weights in the same memory."""
    config = transformers.BigBirdConfig(**OPTIONS, **options)
    torch.manual_seed(0)
    stock, fast = getattr(transformers, name)(config), getattr(ours, name)(config)
    share_parameters(stock, fast)
    return fast.eval(), stock.eval()


def token_ids(config: Any, batch: int, length: int) -> Tensor:
    """Without padding, whose id is 0."""
    return torch.randint(100, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


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


def checked(model: Any, ids: Tensor) -> Expected:
    """What transformers' `model` gives, to twice its own error in float32."""
    with torch.inference_mode():
        return expect(encode(model, ids), encode(copy.deepcopy(model).double(), ids), OUTPUT_FLOOR)


@pytest.mark.parametrize(("batch", "length"), [(1, 1024), (1, 4096)])
def bench_forward(compare: Callable[[Case], None], batch: int, length: int) -> None:
    fast, stock = pair("BigBirdModel")
    full = copy.deepcopy(stock)
    full.set_attention_type("original_full")
    ids = token_ids(fast.config, batch, length)
    flops = matrix_flops(fast.config, batch, length)
    expected = checked(stock, ids)

    def contender(name: str, model: Any, wanted: Expected, baseline: str | None = None) -> Contender:
        return Contender(name, partial(encode, model, ids), baseline, expected=(wanted,), flops=flops, memory=True)

    contenders = (
        contender(STOCK, stock, expected),
        # Another result: what the sparse ones are an approximation of.
        contender(FULL, full, checked(full, ids), STOCK),
        contender("transformers accelerate", accelerated(stock), expected, STOCK),
        contender(OURS, fast, expected, STOCK),
    )
    compare(Case(f"{TITLE} forward", f"{batch} x {length}", contenders, OURS))


@pytest.mark.parametrize(("batch", "length"), [(1, 1024)])
def bench_training_step(compare: Callable[[Case], None], batch: int, length: int) -> None:
    """Forward, backward and AdamW of the masked-language-model class, with training's random blocks. The learning rate
    is 0: each step then meets the same weights, and both models may share them."""
    fast, stock = (model.train() for model in pair("BigBirdForMaskedLM", vocab_size=8000))
    ids = token_ids(fast.config, batch, length)
    exact = gradient(copy.deepcopy(stock).double(), ids)
    expected = expect(gradient(stock, ids), exact, GRADIENT_FLOOR)
    # Training has three blocks more for all rows but the first and the last.
    flops = 3 * (matrix_flops(fast.config, batch, length) + head_flops(fast.config, batch, length))

    def contender(name: str, model: Any, baseline: str | None = None) -> Contender:
        step = TrainingStep(model, ids)
        return Contender(name, step, baseline, outputs=step.gradients, expected=(expected,), flops=flops)

    contenders = (contender(STOCK, stock), contender(OURS, fast, STOCK))
    compare(Case(f"{TITLE} training step", f"{batch} x {length}", contenders, OURS, grad=True))
