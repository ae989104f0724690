"""BigBird-base over the length of one text: time, and memory above the weights, of all twelve layers in float32.

transformers' two attentions hold [heads, tokens, tokens] tensors, so theirs is a curve that ends. Ours goes on, and no
other implementation says what is right there. So each length is checked on the model cut to its first layer (the others
differ in weights alone): every number of its output, against float64 on the ops' reference backend. Up to
LONGEST_PEER tokens transformers has to agree with that too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import text
from bench.contender import Case, Contender, Expected, Limit
from bench.models.bench_big_bird import FAMILY, FULL, OURS, STOCK, with_full_attention
from bench.models.families import OUTPUT_FLOOR, encode, once_more, token_ids
from bench.verify import expect
from encoders_fast import _machine, use_backend

GROUP = "BigBird-base over length"
# Tokens: timed rounds. A round of all takes half a minute at 4096 tokens, one of ours a minute at 65536.
ROUNDS = {1024: 3, 2048: 2, 4096: 2, 8192: 1, 16384: 2, 65536: 1}
# transformers takes minutes beyond, for its time grows with the square.
LONGEST_PEER = 4096
LIMITS = {
    # 4 is linear; the rest is for caches that do not grow with the text.
    16384: (Limit("median", 4.6, of="4096"), Limit("extra_memory", 0.9e9)),
    65536: (Limit("memory", 8e9),),
}


def first_layer(model: Any) -> Any:
    """The model with the first of its layers alone, on the same weights."""
    first = once_more(model)
    first.encoder.layer = first.encoder.layer[:1]
    first.config.num_hidden_layers = 1
    return first


def expected_of(model: Any, ids: Tensor, backend: str | None) -> Expected:
    """What its first layer gives in float64, to twice the error in float32, both on `backend` where one is named."""
    first = first_layer(model)
    with torch.inference_mode(), use_backend(backend):
        return expect(encode(first, ids), encode(copy.deepcopy(first).double(), ids), OUTPUT_FLOOR)


def why_not(heads: int, length: int) -> str | None:
    """For transformers' attentions: each holds two [heads, length, length] tensors at once, with those of the layer
    before in one and with the probabilities beside the scores in the other."""
    needed, there = 2 * 4 * heads * length**2, _machine.memory_bytes()
    if needed > there:
        return f"needs {text.memory(needed)}, there is {text.memory(there)}"
    return "not measured: takes minutes" if length > LONGEST_PEER else None


@pytest.mark.parametrize("length", [pytest.param(T, marks=[pytest.mark.long] * (T > 1024)) for T in ROUNDS])
def bench_length(compare: Callable[[Case], None], length: int) -> None:
    # The published model has 4096 positions: a shorter text has the same.
    fast, stock = FAMILY.pair("Model", num_hidden_layers=12, max_position_embeddings=max(4096, length))
    ids = token_ids(fast.config, 1, length)
    absent = why_not(fast.config.num_attention_heads, length)

    def contender(name: str, model: Any, expected: Expected | None, **more: Any) -> Contender:
        call, check = partial(encode, model, ids), partial(encode, first_layer(model), ids)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        found = () if expected is None else (expected,)
        return Contender(name, call, check=check, expected=found, memory=True, weights=weights, **more)

    sparse = expected_of(fast, ids, "reference")
    full = with_full_attention(stock)
    dense = None if absent else expected_of(full, ids, None)
    contenders = (
        contender(OURS, fast, sparse, target=LIMITS.get(length)),
        contender(STOCK, stock, sparse, absent=absent),
        contender(FULL, full, dense, absent=absent),
    )
    compare(Case(GROUP, str(length), contenders, OURS, rounds=ROUNDS[length], axis="tokens"))
