"""MobileBERT, ours against transformers on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import encoders_fast.models as ours
from bench.contender import Case, Contender, Expected
from bench.models.bench_fnet import ACCELERATED, GRADIENT_FLOOR, TrainingStep, accelerated, compiled, encode, gradient
from bench.verify import expect
from encoders_fast._compare.checkpoint import share_parameters

STOCK, OURS = "transformers float32", "encoders_fast float32"
OUTPUT_FLOOR = 5e-6


@cache
def config() -> transformers.MobileBertConfig:
    """The published model's. No dropout: the contenders could not draw the same."""
    return transformers.MobileBertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def pair(name: str) -> tuple[Any, Any]:
    """(ours, transformers') of one class, with the same seeded weights in the same memory."""
    torch.manual_seed(0)
    stock, fast = getattr(transformers, name)(config()), getattr(ours, name)(config())
    share_parameters(stock, fast)
    return fast.eval(), stock.eval()


def token_ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, config().vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


def matrix_flops(batch: int, length: int) -> float:
    """Two per weight and token, and the attention's scores and contexts, two per pair of tokens and number each."""
    c = config()
    H, D, F = c.hidden_size, c.intra_bottleneck_size, c.intermediate_size
    layer = 3 * H * D + 2 * D * D + D * D + c.num_feedforward_networks * 2 * D * F + D * H
    weights = 3 * c.embedding_size * H + c.num_hidden_layers * layer
    return 2.0 * batch * length * weights + 4.0 * batch * length * length * D * c.num_hidden_layers


def head_flops(batch: int, length: int) -> float:
    """The masked-language-model head: H * H and H * V."""
    return 2.0 * batch * length * config().hidden_size * (config().hidden_size + config().vocab_size)


@pytest.mark.parametrize(("batch", "length"), [(1, 128), (8, 128)])
def bench_forward(compare: Callable[[Case], None], batch: int, length: int) -> None:
    fast, stock = pair("MobileBertModel")
    ids = token_ids(batch, length)
    half, stock_half = (copy.deepcopy(each).bfloat16() for each in (fast, stock))
    with torch.inference_mode():
        exact = encode(copy.deepcopy(stock).double(), ids)
        expected = expect(encode(stock, ids), exact, OUTPUT_FLOOR)
        half_expected = expect(encode(stock_half, ids), exact, 0.0)
    # Compiling takes minutes; one shape shows what it brings.
    compiled_stock, why_not = compiled(stock, ids) if batch == 1 else (None, "compiled for 1 x 128 only")

    def contender(name: str, model: Any, wanted: Expected, **more: Any) -> Contender:
        flops = matrix_flops(batch, length)
        return Contender(name, partial(encode, model, ids), expected=(wanted,), flops=flops, memory=True, **more)

    contenders = (
        contender(STOCK, stock, expected),
        contender("transformers torch.compile float32", compiled_stock, expected, baseline=STOCK, absent=why_not),
        contender(ACCELERATED, accelerated(stock), expected, baseline=STOCK),
        contender(OURS, fast, expected, baseline=STOCK),
        contender("transformers bfloat16", stock_half, half_expected, baseline=STOCK),
        contender("encoders_fast bfloat16", half, half_expected, baseline=STOCK),
    )
    compare(Case("MobileBERT forward", f"{batch} x {length}", contenders, OURS))


@pytest.mark.parametrize(("batch", "length"), [(1, 128), (8, 128)])
def bench_training_step(compare: Callable[[Case], None], batch: int, length: int) -> None:
    """Forward, backward and AdamW of the masked-language-model class. The learning rate is 0: each step then meets the
    same weights, and both models may share them."""
    fast, stock = pair("MobileBertForMaskedLM")
    ids = token_ids(batch, length)
    exact = gradient(copy.deepcopy(stock).double(), ids)
    expected = expect(gradient(stock, ids), exact, GRADIENT_FLOOR)
    # Forward, and backward for the input and for the weights.
    flops = 3 * (matrix_flops(batch, length) + head_flops(batch, length))

    def contender(name: str, model: Any, baseline: str | None = None) -> Contender:
        step = TrainingStep(model, ids)
        return Contender(name, step, baseline, outputs=step.gradients, expected=(expected,), flops=flops)

    contenders = (
        contender(STOCK, stock),
        contender(ACCELERATED, accelerated(stock), STOCK),
        contender(OURS, fast, STOCK),
    )
    compare(Case("MobileBERT training step", f"{batch} x {length}", contenders, OURS, grad=True))
