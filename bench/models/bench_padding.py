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
import transformers
from torch import Tensor

import encoders_fast.models as ours
from bench.contender import Case, Contender, Target
from bench.models import bench_big_bird, bench_preln
from bench.models.bench_fnet import OUTPUT_FLOOR
from bench.verify import expect
from encoders_fast._compare.checkpoint import share_parameters

STOCK, OURS = "transformers float32", "encoders_fast float32"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHARES = (1.0, 0.75, 0.6, 0.5, 0.4, 0.35, 0.25, 0.15)
"""Of the longest sentence's length; half in the mean."""


class Padded(NamedTuple):
    family: str
    longest: int
    options: dict[str, Any]


CASES = {
    "BigBird-base, 2 of 12 layers, full attention": Padded("BigBird", 512, bench_big_bird.OPTIONS),
    "BigBird-base, 2 of 12 layers": Padded("BigBird", 1024, bench_big_bird.OPTIONS),
    "MobileBERT": Padded("MobileBert", 128, NO_DROPOUT),
    "RoBERTa-PreLayerNorm-base": Padded("RobertaPreLayerNorm", 128, NO_DROPOUT),
    "XLM-RoBERTa-XL, 2 of 36 layers": Padded("XLMRobertaXL", 128, NO_DROPOUT | bench_preln.XL),
}


def batch_of(vocabulary: int, longest: int, padding: int) -> dict[str, Tensor]:
    lengths = (torch.tensor(SHARES) * longest).round().long()
    mask = torch.arange(longest) < lengths[:, None]
    ids = torch.randint(100, vocabulary, mask.shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.masked_fill(~mask, padding), "attention_mask": mask.long()}


@pytest.mark.parametrize("title", CASES)
def bench_forward(compare: Callable[[Case], None], title: str) -> None:
    family, longest, options = CASES[title]
    config = getattr(transformers, f"{family}Config")(**options)
    torch.manual_seed(0)
    stock, fast = getattr(transformers, f"{family}Model")(config), getattr(ours, f"{family}Model")(config)
    share_parameters(stock, fast)
    inputs = batch_of(config.vocab_size, longest, config.pad_token_id)
    real = inputs["attention_mask"].bool()

    def encode(model: Any) -> Tensor:
        return model(**inputs).last_hidden_state

    with torch.inference_mode():
        right = encode(copy.deepcopy(stock).double().eval())[real]
        expected = expect(encode(stock.eval())[real], right, OUTPUT_FLOOR)

    def contender(name: str, model: Any, **more: Any) -> Contender:
        call = partial(encode, model.eval())
        return Contender(name, call, outputs=lambda h: (h[real],), expected=(expected,), memory=True, **more)

    contenders = (contender(STOCK, stock), contender(OURS, fast, baseline=STOCK, target=Target(STOCK, 1.7)))
    compare(Case("Half of a batch padding, forward", f"{title}, {len(SHARES)} x {longest}", contenders, OURS))
