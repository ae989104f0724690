"""A batch of sentences padded to the longest, half of it padding, ours against transformers on the same weights.

Ours leaves padding out of the layers; what is compared, and counted, is the work for real tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench import clock
from bench.contender import Case, Contender, Target
from bench.models.families import FAMILIES, OUTPUT_FLOOR
from bench.verify import expect

STOCK, OURS = "transformers float32", "encoders_fast float32"
SHARES = (1.0, 0.75, 0.6, 0.5, 0.4, 0.35, 0.25, 0.15)
"""Of the longest sentence's length; half in the mean."""


class Padded(NamedTuple):
    family: str
    longest: int


BIG_BIRD = "BigBird-base, 2 of 12 layers"
CASES = {
    # Too short for blocks.
    f"{BIG_BIRD}, full attention": Padded(BIG_BIRD, 512),
    BIG_BIRD: Padded(BIG_BIRD, 1024),
} | {
    title: Padded(title, 128) for title in ("MobileBERT", "RoBERTa-PreLayerNorm-base", "XLM-RoBERTa-XL, 2 of 36 layers")
}


def batch_of(vocabulary: int, longest: int, padding: int) -> dict[str, Tensor]:
    lengths = (torch.tensor(SHARES) * longest).round().long()
    mask = torch.arange(longest) < lengths[:, None]
    ids = torch.randint(100, vocabulary, mask.shape, generator=torch.Generator(clock.device()).manual_seed(0))
    return {"input_ids": ids.masked_fill(~mask, padding), "attention_mask": mask.long()}


@pytest.mark.parametrize("title", CASES)
def bench_forward(compare: Callable[[Case], None], title: str) -> None:
    family, longest = CASES[title]
    fast, stock = FAMILIES[family].pair("Model")
    config = stock.config
    inputs = batch_of(config.vocab_size, longest, config.pad_token_id)
    real = inputs["attention_mask"].bool()

    def encode(model: Any) -> Tensor:
        return model(**inputs).last_hidden_state

    with torch.inference_mode():
        right = encode(copy.deepcopy(stock).double())[real]
        expected = expect(encode(stock)[real], right, OUTPUT_FLOOR)

    def contender(name: str, model: Any, **more: Any) -> Contender:
        call = partial(encode, model)
        return Contender(name, call, outputs=lambda h: (h[real],), expected=(expected,), memory=True, **more)

    contenders = (contender(STOCK, stock), contender(OURS, fast, baseline=STOCK, target=Target(STOCK, 1.7)))
    compare(Case("Half of a batch padding, forward", f"{title}, {len(SHARES)} x {longest}", contenders, OURS))
