"""RoBERTa-PreLayerNorm-base, and two layers of XLM-RoBERTa-XL, ours against transformers on the same weights."""

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
from bench.models.bench_fnet import (
    ACCELERATED,
    GRADIENT_FLOOR,
    OUTPUT_FLOOR,
    TrainingStep,
    accelerated,
    encode,
    gradient,
)
from bench.verify import expect
from encoders_fast._compare.checkpoint import share_parameters

STOCK, OURS = "transformers float32", "encoders_fast float32"
HALF_STOCK, HALF_OURS = "transformers bfloat16", "encoders_fast bfloat16"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # the contenders draw differently
# Two layers hold 0.6 GB. The vocabulary of 250880 words would add 2.6 GB, and four times that in a training step; what
# a token costs depends on it in the head alone.
XL = {"num_hidden_layers": 2, "vocab_size": 8000}


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """(ours, transformers') of one class, with the same seeded weights in the same memory."""
    family = name.split("For")[0].removesuffix("Model")
    config = getattr(transformers, f"{family}Config")(**NO_DROPOUT, **options)
    torch.manual_seed(0)
    stock, fast = getattr(transformers, name)(config), getattr(ours, name)(config)
    share_parameters(stock, fast)
    return fast.eval(), stock.eval()


def token_ids(config: Any, batch: int, length: int) -> Tensor:
    """Without padding, whose id is 1."""
    return torch.randint(3, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


def matrix_flops(config: Any, batch: int, length: int) -> float:
    """Two per weight and token, four D * D and two D * F in each layer; and 2 * T * D twice for a token's attention."""
    D, F = config.hidden_size, config.intermediate_size
    return 2.0 * batch * length * config.num_hidden_layers * (4 * D * D + 2 * D * F + 2 * length * D)


def head_flops(config: Any, batch: int, length: int) -> float:
    return 2.0 * batch * length * config.hidden_size * (config.hidden_size + config.vocab_size)


CASES = {
    # Of the 512 positions that its checkpoints have, 510 are of use.
    "RoBERTa-PreLayerNorm-base": ("RobertaPreLayerNorm", {"max_position_embeddings": 514}, 1, 512),
    "XLM-RoBERTa-XL, 2 of 36 layers": ("XLMRobertaXL", XL, 1, 128),
}


@pytest.mark.parametrize("title", CASES)
def bench_forward(compare: Callable[[Case], None], title: str) -> None:
    family, options, batch, length = CASES[title]
    fast, stock = pair(f"{family}Model", **options)
    ids = token_ids(fast.config, batch, length)
    half, half_stock = copy.deepcopy(fast).bfloat16(), copy.deepcopy(stock).bfloat16()
    with torch.inference_mode():
        exact = encode(copy.deepcopy(stock).double(), ids)
        expected = expect(encode(stock, ids), exact, OUTPUT_FLOOR)
        half_expected = expect(encode(half_stock, ids), exact)
    flops = matrix_flops(fast.config, batch, length)

    def contender(name: str, model: Any, wanted: Expected, baseline: str | None = None) -> Contender:
        return Contender(name, partial(encode, model, ids), baseline, expected=(wanted,), flops=flops, memory=True)

    contenders = (
        contender(STOCK, stock, expected),
        contender(ACCELERATED, accelerated(stock), expected, STOCK),
        contender(OURS, fast, expected, STOCK),
        contender(HALF_STOCK, half_stock, half_expected, STOCK),
        contender(HALF_OURS, half, half_expected, HALF_STOCK),
    )
    compare(Case(f"{title} forward", f"{batch} x {length}", contenders, OURS))


@pytest.mark.parametrize("title", CASES)
def bench_training_step(compare: Callable[[Case], None], title: str) -> None:
    """Forward, backward and AdamW of the masked-language-model class. The learning rate is 0: each step then meets the
    same weights, and both models may share them."""
    family, options, batch, length = CASES[title]
    length = min(length, 128)
    fast, stock = pair(f"{family}ForMaskedLM", **options)
    ids = token_ids(fast.config, batch, length)
    exact = gradient(copy.deepcopy(stock).double(), ids)
    expected = expect(gradient(stock, ids), exact, GRADIENT_FLOOR)
    flops = 3 * (matrix_flops(fast.config, batch, length) + head_flops(fast.config, batch, length))

    def contender(name: str, model: Any, baseline: str | None = None) -> Contender:
        step = TrainingStep(model, ids)
        return Contender(name, step, baseline, outputs=step.gradients, expected=(expected,), flops=flops)

    contenders = (
        contender(STOCK, stock),
        contender(ACCELERATED, accelerated(stock), STOCK),
        contender(OURS, fast, STOCK),
    )
    compare(Case(f"{title} training step", f"{batch} x {length}", contenders, OURS, grad=True))
