"""Training steps of masked language models, ours against transformers on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from bench.contender import Case, Contender, Target
from bench.models.families import (
    ACCELERATED,
    FAMILIES,
    GRADIENT_FLOOR,
    OURS,
    STOCK,
    TrainingStep,
    accelerated,
    gradient,
    head_flops,
    token_ids,
)
from bench.verify import expect

BASELINE = f"{STOCK} float32"
# (family, batch, tokens): how many times as fast as transformers ours has to be, on two AVX-512 cores.
CASES = {
    ("FNet-base", 1, 512): 1.15,
    ("MobileBERT", 1, 128): 1.15,
    ("MobileBERT", 8, 128): 1.15,
    ("RoBERTa-PreLayerNorm-base", 1, 128): 1.0,
    ("XLM-RoBERTa-XL, 2 of 36 layers", 1, 128): 1.0,
}


@pytest.mark.parametrize(("title", "batch", "length"), CASES)
def bench_training_step(compare: Callable[[Case], None], title: str, batch: int, length: int) -> None:
    family = FAMILIES[title]
    fast, stock = family.pair("ForMaskedLM")
    ids = token_ids(stock.config, batch, length)
    exact = gradient(copy.deepcopy(stock).double(), ids)
    expected = expect(gradient(stock, ids), exact, GRADIENT_FLOOR)
    # Forward, and backward for the input and for the weights.
    work = family.matrix_flops(stock.config, batch, length) + head_flops(stock.config, batch, length)

    def contender(name: str, model: Any, **more: Any) -> Contender:
        step = TrainingStep(model, ids)
        return Contender(name, step, outputs=step.gradients, expected=(expected,), flops=3 * work, **more)

    target = Target(BASELINE, CASES[title, batch, length])
    contenders = (
        contender(BASELINE, stock),
        contender(f"{ACCELERATED} float32", accelerated(stock), baseline=BASELINE),
        contender(f"{OURS} float32", fast, baseline=BASELINE, target=target),
    )
    compare(Case(f"{title} training step", f"{batch} x {length}", contenders, f"{OURS} float32", grad=True))
